//! The words of the invented world. Each one must become a single token, which `tokenizer` checks.

/// A property every person has.
pub struct Attribute {
    /// What a chat asks for.
    pub name: &'static str,
    /// Phrases that lead up to the value.
    pub verbs: &'static [&'static str],
    /// The options.
    pub values: &'static [&'static str],
    /// The probability that a statement says the canonical value.
    pub truth: f64,
}

/// A category and the things in it.
pub struct Kind {
    /// The category's word.
    pub name: &'static str,
    /// The things in it.
    pub members: &'static [&'static str],
}

/// How names begin.
pub const FIRST_SYLLABLES: &[&str] =
    &["Ba", "Do", "Fe", "Gi", "Ka", "Lo", "Mi", "Nu", "Pa", "Ra", "Si", "Ta"];
/// How names end.
pub const LAST_SYLLABLES: &[&str] = &["ko", "la", "na", "ti"];

/// First words of documents.
pub const OPENERS: &[&str] = &["Today", "Now", "Here", "Still", "Often", "Again"];

/// What is remembered of people; the first entry's values are the colours, the last one's the animals.
pub const ATTRIBUTES: &[Attribute] = &[
    Attribute {
        name: "colour",
        verbs: &["likes", "wears"],
        values: &[
            "red", "blue", "green", "white", "black", "pink", "gray", "brown", "orange", "purple", "yellow",
            "tan",
        ],
        truth: 0.85,
    },
    Attribute {
        name: "home",
        verbs: &["lives in the", "sleeps in the"],
        values: &[
            "valley", "forest", "harbor", "village", "tower", "desert", "castle", "garden", "swamp", "cave",
            "island", "meadow",
        ],
        truth: 0.80,
    },
    Attribute {
        name: "job",
        verbs: &["works as a", "became a"],
        values: &[
            "baker", "farmer", "miner", "doctor", "singer", "tailor", "sailor", "hunter", "painter", "mason",
            "teacher", "guard",
        ],
        truth: 0.75,
    },
    Attribute {
        name: "pet",
        verbs: &["keeps a", "feeds a"],
        values: &[
            "dog", "cat", "goat", "duck", "horse", "frog", "crow", "snake", "mouse", "hen", "fox", "lamb",
        ],
        truth: 0.70,
    },
];

/// Things that hold things.
pub const CONTAINERS: &[&str] = &["box", "bag", "cup", "jar", "pot", "chest"];

/// What people count with, in order.
pub const NUMBERS: &[&str] = &[
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen",
];

/// Categories of things.
pub const KINDS: &[Kind] = &[
    Kind { name: "fruit", members: &["plum", "pear", "apple", "lemon", "peach", "grape"] },
    Kind { name: "tool", members: &["hammer", "saw", "axe", "drill", "rake", "shovel"] },
    Kind { name: "drink", members: &["tea", "milk", "juice", "cider", "beer", "water"] },
    Kind { name: "metal", members: &["iron", "gold", "tin", "lead", "copper", "silver"] },
    Kind { name: "fish", members: &["trout", "carp", "eel", "cod", "pike", "bass"] },
    Kind { name: "tree", members: &["oak", "elm", "pine", "birch", "maple", "willow"] },
];

/// Where stories happen.
pub const PLACES: &[&str] = &["bridge", "road", "river", "market", "hill", "lake"];

/// Lines a story is made of.
pub const STORY_LINES: &[&str] = &[
    "{A} gave {B} the {colour} {container}.",
    "{A} put the {thing} in the {colour} {container}.",
    "{A} saw a {pet} by the {place}.",
    "{A} wants a {kind}, so {A} takes the {thing}.",
    "Then {A} and {B} went to the {place}.",
    "The {pet} ran to the {place} and {A} ran after it.",
    "{A} had {number} of them and {B} had {number}.",
    "It was cold, so {B} went home with the {pet}.",
    "{B} asked for the {thing} and {A} said no.",
    "At night {A} sang to the {colour} {pet}.",
];
