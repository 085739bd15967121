//! The known name that a misspelt one probably means, for errors that suggest it.

/// The known name nearest to `word`, if it takes few edits; case and `-` for `_` do not count.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| text.to_lowercase().replace('-', "_");
    let word = plain(word);
    let length = word.chars().count();
    let near = 1 + length / 4;
    // Names come from callers and servers: only those are compared that can be near, whatever their length.
    known
        .into_iter()
        .filter(|candidate| candidate.chars().count().abs_diff(length) <= near)
        .map(|candidate| (strsim::osa_distance(&word, &plain(candidate)), candidate))
        .filter(|(distance, _)| *distance <= near)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Whether one edit turns `word` into `known`.
pub fn is_one_edit(word: &str, known: &str) -> bool {
    strsim::osa_distance(word, known) == 1
}

/// The sentence that suggests `name`.
pub fn did_you_mean(name: &str) -> String {
    format!("did you mean `{name}`?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_near() {
        let long = "path".repeat(1_000_000);
        let found = |word| nearest(word, ["path", "content", "utc_offset"]);
        assert_eq!(found("pth"), Some("path"));
        assert_eq!(found("apth"), Some("path"));
        assert_eq!(found("UTC-offset"), Some("utc_offset"));
        assert_eq!(found(&long), None);
        assert_eq!(found("sql"), None);
        assert_eq!(found(""), None);
    }
}
