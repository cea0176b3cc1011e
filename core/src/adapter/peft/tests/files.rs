//! Files that are no adapters, folders without one, and adapters with changed bytes (tests T-ST and R13).

use proptest::prelude::*;

use super::*;
use crate::error::ErrorKind;

#[test]
fn files_that_are_no_safetensors_are_refused() {
    let check = |bytes: &[u8], expect: &str| {
        let error = parse(&Draft::new().config_bytes(), bytes, &model(), &limits()).unwrap_err();
        assert!(error.message.contains(expect), "{error}");
        let folder = Draft::new().folder();
        std::fs::write(folder.path().join(WEIGHTS), bytes).unwrap();
        assert!(load(folder.path(), &model(), &limits()).is_err());
    };
    let good = Draft::new().safetensors();
    check(b"", "header is missing");
    check(&good[..7], "header is missing");
    check(&good[..8], "exceeds the file");
    check(&good[..good.len() - 1], "tensors cover");
    check(&[&good[..], b"x"].concat(), "tensors cover");
    check(&u64::MAX.to_le_bytes(), "exceeds the limit of 4194304");
    check(&(4_194_305u64).to_le_bytes(), "exceeds the limit of 4194304");
    check(&file("[]", &[]), "safetensors header");
    check(&file("{", &[]), "safetensors header");
    check(
        &file(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#, &[0; 4]),
        "invalid offset",
    );
    check(
        &file(r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, &[0; 4]),
        "invalid value",
    );
    check(&file(r#"{"a":{"dtype":"F32","shape":[1]}}"#, &[0; 4]), "data_offsets");
    check(b"PK\x03\x04 a zip file, as torch.save writes it", "exceeds the limit");
    let crowd: Vec<_> = (0..16_385)
        .map(|i| format!(r#""t{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#))
        .collect();
    check(&file(&format!("{{{}}}", crowd.join(",")), &[]), "more than 16384 tensors");
    check(&file(&format!("{{{}}}", crowd[1..].join(",")), &[]), "is unsupported LoRA weight");
}

#[test]
fn folders_without_an_adapter_are_not_found() {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path().to_owned(), folder.path().join("none"), folder.path().join("none/x")]
    {
        let error = load(&path, &model(), &limits()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound);
        assert_eq!(error.message, format!("No adapter found for {}", path.display()));
    }
    let config = Draft::new().config_bytes();
    std::fs::write(folder.path().join(CONFIG), config).unwrap();
    let message = || load(folder.path(), &model(), &limits()).unwrap_err().message;
    assert!(message().ends_with("doesn't contain tensors"), "{}", message());
    for pickle in PICKLES {
        std::fs::write(folder.path().join(pickle), b"\x80\x02").unwrap();
        assert!(message().starts_with("adapter_model.bin is a pickle"), "{}", message());
    }
    std::fs::create_dir(folder.path().join(WEIGHTS)).unwrap();
    assert!(message().contains("not a regular file"), "{}", message());
    std::fs::remove_dir(folder.path().join(WEIGHTS)).unwrap();
    // A file that cannot be an adapter of this model is refused by its size alone.
    let large = std::fs::File::create(folder.path().join(WEIGHTS)).unwrap();
    large.set_len(1 << 40).unwrap();
    assert!(message().contains("has at most"), "{}", message());
}

#[test]
fn one_bad_adapter_leaves_others_alone() {
    let good = Draft::new();
    let before = good.parse().unwrap();
    assert!(Draft::new().with(json!({"use_dora": true})).parse().is_err());
    let after = good.parse().unwrap();
    assert_eq!(before.digest, after.digest);
    assert_eq!(after.weights.parts[0].a.at(1), 0.125);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_change_of_bytes_panics(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in proptest::option::of(any::<prop::sample::Index>()),
        in_config in any::<bool>(),
    ) {
        let draft = Draft::new().with(json!({"rank_pattern": {"[qk]_proj": 2}, "alpha_pattern": {"v_proj": 1}}));
        let (mut config, mut weights) = (draft.config_bytes(), draft.safetensors());
        let bytes = if in_config { &mut config } else { &mut weights };
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(loaded) = parse(&config, &weights, &model(), &limits()) {
            // What loads is whole and finite.
            prop_assert_eq!(loaded.modules, 2);
            for part in &loaded.weights.parts {
                prop_assert!(part.scale.is_finite());
                prop_assert_eq!(part.a.rows, part.b.cols);
                prop_assert!(part.a.to_f32().iter().chain(&part.b.to_f32()).all(|v| v.is_finite()));
            }
        }
    }
}
