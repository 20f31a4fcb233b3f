//! Writes a small log to a directory, as a server would serve it, with an older checkpoint beside it, and prints its key.
//!
//!     cargo run -p keypool-transparency --example small_log -- DIRECTORY [LEAVES]

use std::{
    error::Error,
    fs,
    io::{self, Write},
    path::Path,
};

use keypool_transparency::{
    checkpoint::Checkpoint,
    leaf::{Leaf, TextLeaf},
    merkle::leaf_hash,
    origin::Origin,
    package::Tag,
    tree::Appender,
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().ok_or("give a directory")?;
    let leaves: u64 = arguments.next().map_or(Ok(1000), |number| number.parse())?;
    let directory = Path::new(&directory);
    let origin = Origin { server: [0x1f; 8], k: 1, copy: [1; 4] };
    let key = origin.key(&[7; 32])?;
    let mut appender = Appender::new();
    let text = TextLeaf::Origin { name: origin.to_string(), kept: None }.to_bytes();
    let leaf = |i: u64| Leaf::new(&Tag(leaf_hash(&i.to_be_bytes())), &[9; 32]).as_bytes().to_vec();
    for (name, entries) in [
        ("checkpoint.old", [text].into_iter().chain((0..leaves / 2).map(leaf)).collect::<Vec<_>>()),
        ("checkpoint", (leaves / 2..leaves).map(leaf).collect()),
    ] {
        let batch = appender.append(&entries)?;
        for (tile, bytes) in batch.tiles {
            let path = directory.join(tile.to_string());
            fs::create_dir_all(path.parent().ok_or("a tile is in a directory")?)?;
            fs::write(path, bytes)?;
        }
        let checkpoint = Checkpoint { origin: origin.to_string(), size: batch.size, root: batch.root };
        fs::write(directory.join(name), checkpoint.sign(&key)?.to_string())?;
    }
    writeln!(io::stdout(), "{}", key.verifier())?;
    Ok(())
}
