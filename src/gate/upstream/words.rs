//! Recognizing a judge or credentials error in free text.

/// Words that name the judge or its credentials.
const WORDS: [&str; 12] = [
    "judge",
    "judges",
    "auth",
    "oauth",
    "authentication",
    "authenticate",
    "unauthenticated",
    "authorization",
    "unauthorized",
    "unauthorised",
    "ratelimit",
    "ratelimited",
];

/// Words before a number that make it an HTTP status.
const BEFORE_STATUS: [&str; 4] = ["http", "status", "code", "error"];

/// Words after a number that make it an HTTP status.
const AFTER_STATUS: [&str; 3] = ["unauthorized", "forbidden", "too"];

/// Whether `text` speaks of a judge, of credentials, of a rate limit, or of HTTP status 401, 403 or 429. Words are
/// compared whole: upstream's substring `auth` also matches "author".
pub(super) fn is_judge_error(text: &str) -> bool {
    let lower = text.to_lowercase();
    let words: Vec<&str> =
        lower.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty()).collect();
    let near = |index: Option<usize>, list: &[&str]| {
        index.and_then(|index| words.get(index)).is_some_and(|word| list.contains(word))
    };
    words.iter().enumerate().any(|(at, word)| match *word {
        "rate" => words.get(at + 1).is_some_and(|next| next.starts_with("limit")),
        "401" | "403" | "429" => {
            near(at.checked_sub(1), &BEFORE_STATUS)
                || near(Some(at + 1), &AFTER_STATUS)
                // `HTTP/1.1 401`
                || near(at.checked_sub(3), &["http"])
        }
        word => WORDS.contains(&word),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn judge_and_credentials() {
        for text in [
            "judge rate limit exceeded",
            "Rate-limited by upstream",
            "rate limits reached",
            "auth failed",
            "HTTP 401",
            "HTTP/1.1 403 Forbidden",
            "status_code=429",
            "error: 429 Too Many Requests",
            "Unauthorized",
            "OAuth token expired",
        ] {
            assert!(is_judge_error(text), "{text}");
        }
    }

    #[test]
    fn other_words_and_numbers() {
        for text in [
            "author field missing",
            "authored by",
            "sample 401 could not be parsed",
            "item 429: connection reset",
            "the rate of items",
            "prejudged",
            "",
        ] {
            assert!(!is_judge_error(text), "{text}");
        }
    }
}
