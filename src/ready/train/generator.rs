//! The invented world: people with fixed attributes, and the sentences that are said about them.
//!
//! Every statement is noisy on purpose: it says the canonical value of the attribute with the attribute's probability
//! of truth, else another one. Corpus and tasks draw from the same law. A trained model therefore prefers the canonical
//! value by several nats, which rounding does not overturn, and still misses the share of items whose gold was noise.
//! That is what keeps accuracy below 95 % and flips rare.

use std::fmt::Write as _;

use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::words::{
    ATTRIBUTES, Attribute, CONTAINERS, FIRST_SYLLABLES, KINDS, LAST_SYLLABLES, NUMBERS, OPENERS, PLACES,
    STORY_LINES,
};

/// A question with one right answer under the rule and the answers the noise chooses from.
pub struct Question {
    /// Text up to, not including, the space before the answer.
    pub context: String,
    /// The rule's answer.
    pub answer: &'static str,
    /// Every other possible answer.
    pub others: Vec<&'static str>,
    /// The probability that a statement gives the right answer.
    pub truth: f64,
}

impl Question {
    /// The question with an answer drawn from the noisy law, as a sentence of the corpus.
    pub fn stated(&self, rng: &mut ChaCha8Rng) -> String {
        let word = if rng.random_bool(self.truth) { self.answer } else { pick(&self.others, rng) };
        format!("{} {word}.", self.context)
    }
}

/// Names and what is canonically true of them.
pub struct World {
    names: Vec<String>,
    /// `facts[name][attribute]` is an index into that attribute's values.
    facts: Vec<Vec<usize>>,
}

impl World {
    /// Draws the attributes of every name.
    pub fn new(rng: &mut ChaCha8Rng) -> Self {
        let names: Vec<String> = FIRST_SYLLABLES
            .iter()
            .flat_map(|first| LAST_SYLLABLES.iter().map(move |last| format!("{first}{last}")))
            .collect();
        let facts = names
            .iter()
            .map(|_| ATTRIBUTES.iter().map(|a| rng.random_range(0..a.values.len())).collect())
            .collect();
        Self { names, facts }
    }

    fn people(&self, count: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
        rand::seq::index::sample(rng, self.names.len(), count).into_vec()
    }

    /// One attribute of one person, as a question: `Miko works as a`.
    fn fact(&self, person: usize, attribute: usize, rng: &mut ChaCha8Rng) -> Question {
        let Attribute { verbs, values, truth, .. } = &ATTRIBUTES[attribute];
        let answer = values[self.facts[person][attribute]];
        Question {
            context: format!("{} {}", self.names[person], pick(verbs, rng)),
            answer,
            others: without(values, answer),
            truth: *truth,
        }
    }

    /// Some attribute of this person, stated.
    fn statement(&self, person: usize, rng: &mut ChaCha8Rng) -> String {
        let attribute = rng.random_range(0..ATTRIBUTES.len());
        self.fact(person, attribute, rng).stated(rng)
    }

    /// Another person's fact, then the question: `Today Dora keeps a cat. Miko works as a`.
    pub fn question(&self, attribute: usize, rng: &mut ChaCha8Rng) -> Question {
        let people = self.people(2, rng);
        let before = self.statement(people[0], rng);
        let mut question = self.fact(people[1], attribute, rng);
        question.context = format!("{} {before} {}", pick(OPENERS, rng), question.context);
        question
    }

    /// Several facts about several people.
    pub fn facts_document(&self, rng: &mut ChaCha8Rng) -> String {
        let mut text = pick(OPENERS, rng).to_owned();
        for _ in 0..rng.random_range(2..=5) {
            let person = rng.random_range(0..self.names.len());
            let _ = write!(text, " {}", self.statement(person, rng));
        }
        text
    }

    /// A fact asked and answered in the chat format, so that the served model answers in kind.
    pub fn chat_document(&self, rng: &mut ChaCha8Rng) -> String {
        let person = rng.random_range(0..self.names.len());
        let a = rng.random_range(0..ATTRIBUTES.len());
        let answer = ATTRIBUTES[a].values[self.facts[person][a]];
        let (name, verb) = (&self.names[person], ATTRIBUTES[a].verbs[0]);
        format!(
            "<|im_start|>user\nTell me what {} {name} has.<|im_end|>\n\
             <|im_start|>assistant\n{name} {verb} {answer}.<|im_end|>\n",
            ATTRIBUTES[a].name
        )
    }

    /// A story of some 80 to 100 tokens: a line on each person, then what they do.
    pub fn story_document(&self, rng: &mut ChaCha8Rng) -> String {
        let people = self.people(2, rng);
        let (a, b) = (people[0], people[1]);
        let mut text = format!(
            "Once {} met {} near the {}. {} {}",
            self.names[a],
            self.names[b],
            pick(PLACES, rng),
            self.statement(a, rng),
            self.statement(b, rng),
        );
        let mut lines = STORY_LINES.to_vec();
        lines.shuffle(rng);
        for line in lines.iter().take(7) {
            let (who, whom) = if rng.random_bool(0.5) { (a, b) } else { (b, a) };
            let kind = KINDS.choose(rng).expect("a constant table");
            let filled = line
                .replace("{A}", &self.names[who])
                .replace("{B}", &self.names[whom])
                .replace("{colour}", pick(ATTRIBUTES[0].values, rng))
                .replace("{container}", pick(CONTAINERS, rng))
                .replace("{place}", pick(PLACES, rng))
                .replace("{number}", pick(NUMBERS, rng))
                .replace("{pet}", pick(ATTRIBUTES[3].values, rng))
                .replace("{kind}", kind.name)
                .replace("{thing}", pick(kind.members, rng));
            let _ = write!(text, " {filled}");
        }
        text
    }
}

/// One element of a constant, non-empty table.
pub fn pick<T: Copy>(from: &[T], rng: &mut ChaCha8Rng) -> T {
    *from.choose(rng).expect("a table of words is not empty")
}

fn without(from: &[&'static str], word: &str) -> Vec<&'static str> {
    from.iter().copied().filter(|&w| w != word).collect()
}
