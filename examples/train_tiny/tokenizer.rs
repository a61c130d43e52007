//! Byte-level BPE, trained on the corpus with Hugging Face's `tokenizers`.

use anyhow::{Result, anyhow, ensure};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer, TokenizerImpl};

use super::corpus::Corpus;
pub use super::tokens::{END_OF_TEXT_ID, encode};
use super::words::{ATTRIBUTES, KINDS, NUMBERS};

/// Separates documents; also the prefix of a scored document.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// Opens a chat message.
pub const IM_START: &str = "<|im_start|>";
/// Closes a chat message.
pub const IM_END: &str = "<|im_end|>";
/// The id of [`IM_END`].
pub const IM_END_ID: u32 = 2;

/// Enough text that every word of the generator has been seen often.
const TRAINING_DOCUMENTS: usize = 20_000;

/// Trains a tokenizer of at most `vocab` tokens on the beginning of the corpus.
pub fn train(corpus: &mut Corpus<'_>, vocab: usize) -> Result<Tokenizer> {
    let specials = [END_OF_TEXT, IM_START, IM_END].map(|t| AddedToken::from(t, true));
    let mut trainer = BpeTrainer::builder()
        .vocab_size(vocab)
        .min_frequency(2)
        .show_progress(false)
        .special_tokens(specials.to_vec())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut tokenizer: TokenizerImpl<BPE, _, _, _, _> = tokenizers::TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(None::<tokenizers::NormalizerWrapper>)
        .with_pre_tokenizer(Some(ByteLevel::new(false, true, true)))
        .with_post_processor(Some(ByteLevel::new(false, false, true)))
        .with_decoder(Some(ByteLevel::new(false, true, true)))
        .build()
        .map_err(|e| anyhow!(e))?;
    // The marks of a chat are whole tokens already; only the words between them are counted.
    let texts = (0..TRAINING_DOCUMENTS)
        .map(|_| corpus.document().replace(IM_START, "").replace(IM_END, ""))
        .collect::<Vec<_>>();
    tokenizer.train(&mut trainer, texts.into_iter()).map_err(|e| anyhow!(e))?;
    let tokenizer = Tokenizer::from(tokenizer);
    check(&tokenizer)?;
    Ok(tokenizer)
}

/// The one token of a choice, with the space before it.
pub fn choice_id(tokenizer: &Tokenizer, choice: &str) -> Result<u32> {
    let ids = encode(tokenizer, &format!(" {choice}"))?;
    ensure!(ids.len() == 1, "choice {choice:?} is {} tokens, expected one; raise --vocab", ids.len());
    Ok(ids[0])
}

fn check(tokenizer: &Tokenizer) -> Result<()> {
    ensure!(tokenizer.token_to_id(END_OF_TEXT) == Some(END_OF_TEXT_ID), "special tokens must come first");
    ensure!(tokenizer.token_to_id(IM_END) == Some(IM_END_ID), "special tokens must come first");
    let attributes = ATTRIBUTES.iter().flat_map(|a| a.values);
    let things = KINDS.iter().flat_map(|k| k.members);
    for word in attributes.chain(things).chain(NUMBERS) {
        choice_id(tokenizer, word)?;
    }
    Ok(())
}
