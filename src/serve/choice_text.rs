//! The text of one choice as its tokens come: parts of characters and of stop strings are held back.

use super::text::TextCodec;

/// Tokens of the prompt before the generated ones: a decoder may treat the first token of a text differently
/// (SentencePiece drops its leading space).
const CONTEXT_TOKENS: usize = 6;
const REPLACEMENT: char = '\u{fffd}';

/// Text being generated.
#[derive(Debug, Clone)]
pub(super) struct ChoiceText {
    ids: Vec<u32>,
    /// Ids from here on are decoded together; those before have been shown.
    from: usize,
    /// Ids up to here have been shown.
    shown: usize,
    /// Text that may be the beginning of a stop string.
    held: String,
    stop: Vec<String>,
    include_stop: bool,
}

impl ChoiceText {
    pub fn new(prompt: &[u32], stop: &[String], include_stop: bool) -> Self {
        let ids = prompt[prompt.len().saturating_sub(CONTEXT_TOKENS)..].to_vec();
        let shown = ids.len();
        Self { ids, from: 0, shown, held: String::new(), stop: stop.to_vec(), include_stop }
    }

    /// Text that is certain after one more token, and the stop string that ended it. With `may_stop` false stop
    /// strings are text like any other.
    pub fn push(&mut self, id: u32, may_stop: bool, codec: &dyn TextCodec) -> (String, Option<String>) {
        self.ids.push(id);
        let new = self.unseen(codec);
        if !new.ends_with(REPLACEMENT) {
            self.from = self.shown;
            self.shown = self.ids.len();
            self.held.push_str(&new);
        }
        if !may_stop {
            return (std::mem::take(&mut self.held), None);
        }
        if let Some((at, stop)) = self.first_stop() {
            let end = if self.include_stop { at + stop.len() } else { at };
            self.held.truncate(end);
            return (std::mem::take(&mut self.held), Some(stop));
        }
        let kept = self.held.split_off(self.held.len() - self.possible_stop());
        (std::mem::replace(&mut self.held, kept), None)
    }

    /// The rest, when nothing follows.
    pub fn finish(&mut self, codec: &dyn TextCodec) -> String {
        let rest = self.unseen(codec);
        self.shown = self.ids.len();
        std::mem::take(&mut self.held) + &rest
    }

    /// Text of the ids that were not shown.
    fn unseen(&self, codec: &dyn TextCodec) -> String {
        if self.shown == self.ids.len() {
            return String::new();
        }
        let before = codec.decode(&self.ids[self.from..self.shown]);
        let whole = codec.decode(&self.ids[self.from..]);
        // A prompt may end within a character, which the first token completes.
        let new =
            whole.strip_prefix(&before).or_else(|| whole.strip_prefix(before.trim_end_matches(REPLACEMENT)));
        new.map_or_else(|| codec.decode(&self.ids[self.shown..]), str::to_owned)
    }

    /// The earliest stop string in the held text.
    fn first_stop(&self) -> Option<(usize, String)> {
        let found = self.stop.iter().filter_map(|s| Some((self.held.find(s.as_str())?, s.clone())));
        found.min_by_key(|(at, _)| *at)
    }

    /// Length of the longest end of the held text that begins a stop string.
    fn possible_stop(&self) -> usize {
        let begins = |at: &usize| self.stop.iter().any(|s| s.starts_with(&self.held[*at..]));
        let start = self.held.char_indices().map(|(at, _)| at).find(begins);
        start.map_or(0, |at| self.held.len() - at)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::ByteCodec;
    use super::*;

    /// Pushes the bytes; returns the pieces, and the stop string.
    fn pieces(bytes: &[u8], stop: &[&str], include: bool) -> (Vec<String>, Option<String>) {
        let stop: Vec<String> = stop.iter().map(|s| (*s).to_owned()).collect();
        let mut text = ChoiceText::new(&[65, 66], &stop, include);
        let mut out = Vec::new();
        for byte in bytes {
            let (piece, stopped) = text.push(u32::from(*byte), true, &ByteCodec);
            out.push(piece);
            if stopped.is_some() {
                return (out, stopped);
            }
        }
        out.push(text.finish(&ByteCodec));
        (out, None)
    }

    #[test]
    fn characters_come_whole() {
        assert_eq!(pieces("aé€b".as_bytes(), &[], false).0, ["a", "", "é", "", "", "€", "b", ""]);
        assert_eq!(pieces(b"a\xe2\x82", &[], false).0.concat(), "a\u{fffd}");
        assert_eq!(pieces(b"\x80a", &[], false).0, ["", "\u{fffd}a", ""]);
    }

    #[test]
    fn a_prompt_may_end_within_a_character() {
        let mut text = ChoiceText::new(&[65, 0xc3], &[], false);
        assert_eq!(text.push(0xa9, true, &ByteCodec).0, "é");
    }

    #[test]
    fn stop_strings_are_held_back_and_found_across_tokens() {
        let (out, stop) = pieces(b"one END two", &["END", "two"], false);
        assert_eq!((out.concat().as_str(), stop.as_deref()), ("one ", Some("END")));
        assert!(out[4].is_empty() && out[5].is_empty(), "E and N wait");
        assert_eq!(pieces(b"one END", &["END"], true).0.concat(), "one END");
        // Held back in vain.
        assert_eq!(pieces(b"EN EEND", &["ENDE"], false), (pieces(b"EN EEND", &["ENDE"], false).0, None));
        assert_eq!(pieces(b"EN EEND", &["ENDE"], false).0.concat(), "EN EEND");
        assert_eq!(pieces(b"ababac", &["abac"], false).0.concat(), "ab");
    }

    #[test]
    fn stops_wait_until_they_may() {
        let stop = ["b".to_owned()];
        let mut text = ChoiceText::new(&[65], &stop, false);
        assert_eq!(text.push(98, false, &ByteCodec), ("b".to_owned(), None));
        assert_eq!(text.push(98, true, &ByteCodec), (String::new(), Some("b".to_owned())));
    }
}
