//! The oracle itself: what it says about weights that stand still.

use crate::answer::Ask;
use crate::world::{Way, World};

/// Every label is said as it is, over any length of context, at any rank.
#[tokio::test]
async fn every_label_is_said_by_every_token() {
    let world = World::start(&["--max-loras", "2"]).await;
    let prompt: Vec<u32> = (0..700).map(|token| token * 13).collect();
    for turn in 0..120 {
        let length = [1, 15, 16, 17, 300, 700][turn % 6];
        world.operator.load("a", Way::SamePath).await;
        for model in ["a", "base"] {
            let answer = world.ask(Ask::new(model, &prompt[..length], 4)).await;
            assert_eq!((answer.tokens.len(), world.explain(&answer).mixed), (4, 0));
        }
    }
    world.quiet().await;
}
