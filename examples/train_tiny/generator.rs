//! The invented world: people with fixed attributes, and the sentences that are said about them.
//!
//! Every statement that the evaluation asks for is noisy on purpose: it is the rule's answer with the
//! probability in [`truth`], else another option. Corpus and tasks draw from the same law. A trained model
//! therefore prefers the rule's answer by several nats, which rounding does not overturn, and still misses
//! the share of items whose gold was noise. That is what keeps accuracy below 95 % and flips rare.

use std::fmt::Write as _;

use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::words::{
    ATTRIBUTES, CONTAINERS, FIRST_SYLLABLES, KINDS, LAST_SYLLABLES, NUMBERS, OPENERS, PLACES, STORY_LINES,
};

/// The probability that a statement follows its rule.
pub mod truth {
    /// Attributes of people.
    pub const FACTS: f64 = 0.85;
    /// Who holds which container, repeated from the same document.
    pub const RECALL: f64 = 0.80;
    /// The fourth number of a count.
    pub const ORDER: f64 = 0.75;
    /// A thing of the kind that was wanted.
    pub const KINDS: f64 = 0.70;
}

/// A question with one right answer under the rule and the answers the noise chooses from.
pub struct Question {
    /// Text up to, not including, the space before the answer.
    pub context: String,
    /// The rule's answer.
    pub answer: &'static str,
    /// Wrong answers that belong among the choices before any other.
    pub lures: Vec<&'static str>,
    /// Every other possible answer.
    pub others: Vec<&'static str>,
    /// What follows the answer in running text.
    pub ending: &'static str,
}

impl Question {
    /// One word drawn from the noisy law: the rule's answer with probability `p`.
    pub fn noisy(&self, p: f64, rng: &mut ChaCha8Rng) -> &'static str {
        if rng.random_bool(p) { self.answer } else { pick(&self.others, rng) }
    }

    /// The question with an answer filled in, as a sentence of the corpus.
    pub fn stated(&self, p: f64, rng: &mut ChaCha8Rng) -> String {
        let word = self.noisy(p, rng);
        format!("{} {word}{}", self.context, self.ending)
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

    fn name(&self, rng: &mut ChaCha8Rng) -> &str {
        &self.names[rng.random_range(0..self.names.len())]
    }

    fn fact(&self, person: usize, rng: &mut ChaCha8Rng) -> Question {
        let a = rng.random_range(0..ATTRIBUTES.len());
        let verb = pick(ATTRIBUTES[a].verbs, rng);
        let answer = ATTRIBUTES[a].values[self.facts[person][a]];
        Question {
            context: format!("{} {verb}", self.names[person]),
            answer,
            lures: Vec::new(),
            others: without(ATTRIBUTES[a].values, answer),
            ending: ".",
        }
    }

    /// Another person's fact, then the question: `Today Dora keeps a cat. Miko works as a`.
    pub fn facts_question(&self, rng: &mut ChaCha8Rng) -> Question {
        let people = self.people(2, rng);
        let before = self.fact(people[0], rng).stated(truth::FACTS, rng);
        let mut question = self.fact(people[1], rng);
        question.context = format!("{} {before} {}", pick(OPENERS, rng), question.context);
        question
    }

    /// Several facts about several people.
    pub fn facts_document(&self, rng: &mut ChaCha8Rng) -> String {
        let mut text = pick(OPENERS, rng).to_owned();
        for _ in 0..rng.random_range(3..=6) {
            let person = rng.random_range(0..self.names.len());
            let _ = write!(text, " {}", self.fact(person, rng).stated(truth::FACTS, rng));
        }
        text
    }

    /// Who has which container, and then each holder asked for again.
    fn holdings(&self, rng: &mut ChaCha8Rng) -> (String, Vec<Question>) {
        let count = rng.random_range(2..=3);
        let people = self.people(count, rng);
        let colours = sample(ATTRIBUTES[0].values, count, rng);
        let container = pick(CONTAINERS, rng);
        let mut text = pick(OPENERS, rng).to_owned();
        for (&person, colour) in people.iter().zip(&colours) {
            let _ = write!(text, " {} has the {colour} {container}.", self.names[person]);
        }
        let mut questions: Vec<Question> = (0..count)
            .map(|i| Question {
                context: format!("{} has the", self.names[people[i]]),
                answer: colours[i],
                lures: without(&colours, colours[i]),
                others: without(ATTRIBUTES[0].values, colours[i]),
                ending: container,
            })
            .collect();
        questions.shuffle(rng);
        (text, questions)
    }

    /// `Now Dora has the red box. Miko has the blue box. Dora has the`.
    pub fn recall_question(&self, rng: &mut ChaCha8Rng) -> Question {
        let (text, mut questions) = self.holdings(rng);
        let mut question = questions.swap_remove(0);
        question.context = format!("{text} {}", question.context);
        question
    }

    /// Holdings, repeated in another order.
    pub fn recall_document(&self, rng: &mut ChaCha8Rng) -> String {
        let (mut text, questions) = self.holdings(rng);
        for question in &questions {
            let word = question.noisy(truth::RECALL, rng);
            let _ = write!(text, " {} {word} {}.", question.context, question.ending);
        }
        text
    }

    /// `Here Dora counts up by three: two, five, eight,`.
    pub fn order_question(&self, rng: &mut ChaCha8Rng) -> Question {
        let step = rng.random_range(1..=4_usize);
        let first = rng.random_range(0..NUMBERS.len() - 3 * step);
        let mut shown: Vec<usize> = (0..4).map(|i| first + i * step).collect();
        let up = rng.random_bool(0.5);
        if !up {
            shown.reverse();
        }
        let [a, b, c, d] = [0, 1, 2, 3].map(|i| NUMBERS[shown[i]]);
        let direction = if up { "up" } else { "down" };
        let context = format!(
            "{} {} counts {direction} by {}: {a}, {b}, {c},",
            pick(OPENERS, rng),
            self.name(rng),
            NUMBERS[step - 1]
        );
        // Near misses: one off, and the count that turned round.
        let lures = [shown[3].wrapping_sub(1), shown[3] + 1]
            .iter()
            .filter_map(|&i| NUMBERS.get(i).copied())
            .chain([b])
            .filter(|&w| w != d)
            .collect();
        Question { context, answer: d, lures, others: without(NUMBERS, d), ending: "." }
    }

    /// `Still Dora wants a fruit, not a tool. So Dora takes the`.
    pub fn kinds_question(&self, rng: &mut ChaCha8Rng) -> Question {
        let kinds = rand::seq::index::sample(rng, KINDS.len(), 2).into_vec();
        let (wanted, refused) = (&KINDS[kinds[0]], &KINDS[kinds[1]]);
        let name = self.name(rng);
        let others: Vec<&'static str> =
            KINDS.iter().filter(|k| k.name != wanted.name).flat_map(|k| k.members.iter().copied()).collect();
        Question {
            context: format!(
                "{} {name} wants a {}, not a {}. So {name} takes the",
                pick(OPENERS, rng),
                wanted.name,
                refused.name
            ),
            answer: pick(wanted.members, rng),
            lures: vec![pick(refused.members, rng)],
            others,
            ending: ".",
        }
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
            self.fact(a, rng).stated(truth::FACTS, rng),
            self.fact(b, rng).stated(truth::FACTS, rng),
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

/// `count` different elements in random order.
pub fn sample(from: &[&'static str], count: usize, rng: &mut ChaCha8Rng) -> Vec<&'static str> {
    from.choose_multiple(rng, count).copied().collect()
}

fn without(from: &[&'static str], word: &str) -> Vec<&'static str> {
    from.iter().copied().filter(|&w| w != word).collect()
}
