//! What the writer of an unknown name may have meant.

/// The one of `known` that is nearest to `name`, if any is near enough to be a typo of it.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    known
        .into_iter()
        .map(|known| (distance(&name, &known.to_lowercase()), known))
        .filter(|(distance, known)| *distance <= 1 + known.chars().count() / 4)
        .min()
        .map(|(_, known)| known)
}

/// `; did you mean "x"?` where a known name is near, otherwise the known names.
pub fn suggest<'a>(name: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    if let Some(nearest) = nearest(name, known.clone()) {
        return format!("; did you mean {nearest:?}?");
    }
    let known: Vec<&str> = known.into_iter().collect();
    if known.is_empty() { String::new() } else { format!("; there are: {}", known.join(", ")) }
}

/// Characters to insert, delete, exchange or swap with their neighbour until `a` is `b`.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    let mut last = None;
    for (i, x) in a.chars().enumerate() {
        let mut next = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let mut cost = (row[j] + usize::from(x != *y)).min(row[j + 1] + 1).min(next[j] + 1);
            if j > 0 && last == Some(*y) && x == b[j - 1] {
                cost = cost.min(before[j - 1] + 1);
            }
            next.push(cost);
        }
        before = std::mem::replace(&mut row, next);
        last = Some(x);
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typo_finds_its_name() {
        assert_eq!(nearest("regoins", ["regions", "ttl"]), Some("regions"));
        assert_eq!(nearest("Carrier", ["origin", "carrier"]), Some("carrier"));
        assert_eq!(nearest("compression", ["regions", "ttl"]), None);
        assert_eq!(suggest("x", ["regions", "limit"]), "; there are: regions, limit");
        assert_eq!(distance("ab", "ba"), 1);
        assert_eq!(distance("", "abc"), 3);
    }
}
