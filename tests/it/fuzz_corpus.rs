//! Every fuzz target over its committed corpus, and over each input cut and flipped a little.

#[expect(unreachable_pub, reason = "a library of its own workspace, included here")]
#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::{fs, path::Path};

type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 18] = [
    ("frame", targets::frame),
    ("hello", targets::hello),
    ("message", targets::message),
    ("quota_headers", targets::quota_headers),
    ("quota_json", targets::quota_json),
    ("pool_ops", targets::pool_ops),
    ("jwt_claims", targets::jwt_claims),
    ("event", targets::event),
    ("stream", targets::stream),
    ("bound_strip", targets::bound_strip),
    ("sse", targets::sse),
    ("ws_frame", targets::ws_frame),
    ("sniff", targets::sniff),
    ("wrapped", targets::wrapped),
    ("models", targets::models),
    ("skim", targets::skim),
    ("plain", targets::plain),
    ("chunks", targets::chunks),
];

#[test]
fn no_input_of_the_corpus_breaks_a_promise() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    for (name, target) in TARGETS {
        let main =
            fs::read_to_string(fuzz.join("fuzz_targets").join(format!("{name}.rs"))).unwrap();
        assert!(main.contains(&format!("cma_fuzz::{name}(")), "{name} has its binary");
        let mut files = 0;
        for entry in fs::read_dir(fuzz.join("corpus").join(name)).unwrap() {
            let bytes = fs::read(entry.unwrap().path()).unwrap();
            target(&bytes);
            for at in 0..bytes.len().min(400) {
                target(&bytes[..at]);
                for flip in [1, 0x20, 0x80] {
                    let mut other = bytes.clone();
                    other[at] ^= flip;
                    target(&other);
                }
            }
            files += 1;
        }
        assert!(files > 1, "{name} has a corpus");
    }
}
