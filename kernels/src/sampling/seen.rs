//! Which tokens a sequence holds, counted as they come: what penalties ask at every draw.

use std::collections::HashMap;

/// A token that the sequence holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Which.
    pub token: u32,
    /// How often in the output; 0 where only the prompt has it.
    pub in_output: u32,
}

/// All of them, each once.
#[derive(Debug, Clone, Default)]
pub struct SeenTokens {
    list: Vec<Seen>,
    /// Where a token is in the list.
    places: HashMap<u32, usize>,
}

impl SeenTokens {
    /// Those of a prompt.
    pub fn of_prompt(prompt: &[u32]) -> Self {
        let mut seen = Self::default();
        for &token in prompt {
            seen.count(token, 0);
        }
        seen
    }

    /// The output has one token more.
    pub fn push(&mut self, token: u32) {
        self.count(token, 1);
    }

    /// In the order in which they came first.
    pub fn as_slice(&self) -> &[Seen] {
        &self.list
    }

    fn count(&mut self, token: u32, more: u32) {
        let place = *self.places.entry(token).or_insert(self.list.len());
        if place == self.list.len() {
            self.list.push(Seen { token, in_output: 0 });
        }
        self.list[place].in_output += more;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_counted_once_each_and_in_the_output_alone() {
        let mut counted = SeenTokens::of_prompt(&[7, 3, 7]);
        for token in [3, 9, 9, 9] {
            counted.push(token);
        }
        let seen = |token, in_output| Seen { token, in_output };
        assert_eq!(counted.as_slice(), [seen(7, 0), seen(3, 1), seen(9, 3)]);
    }
}
