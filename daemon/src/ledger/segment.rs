//! One file of the ledger: blocks that are whole or not there.
//!
//! A segment is a head and blocks, each with its length and checksum, written in one call and never
//! changed. So a daemon that is killed leaves at most one block torn at the very end, which the next
//! start cuts off; a block that the disk damaged is passed over and the rest still counts. A block
//! brings the names that its rows are the first to use, and says where their numbers begin.

use super::row::{Kept, NAMES, NOBODY, Names, ROW, Row};
use std::{
    collections::HashMap,
    fs::File,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

/// What every segment begins with: the format and its version.
const MAGIC: &[u8; 8] = b"CMAUSE01";
/// Length, checksum.
const FRAME: usize = 8;
/// First number of the names, how many of them, how many rows.
const HEAD: usize = 12;
/// Rows of a block: a batch that is longer becomes several.
const MAX_ROWS: usize = 4096;
/// Bytes of a name; what is longer is cut.
const MAX_NAME: usize = 256;
/// No block is longer: all names of each row new, at most.
const MAX_BLOCK: usize = HEAD + MAX_ROWS * (ROW + NAMES * (MAX_NAME + 2));

/// A segment that is written to.
#[derive(Debug)]
pub(super) struct Segment {
    path: PathBuf,
    file: File,
    /// Bytes of it that are whole.
    bytes: u64,
    names: HashMap<Arc<str>, u32>,
    block: Vec<u8>,
}

/// What a reader makes of a segment.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// The names by number; none where a damaged block had them.
    pub(super) names: Vec<Option<Arc<str>>>,
    /// The last byte up to which it is whole, and what is wrong behind it.
    whole: u64,
    /// The file ends inside a block.
    torn: bool,
    /// Blocks that were passed over.
    pub(super) damaged: u32,
}

/// The path of the segment of a number.
pub(super) fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:08}.rows"))
}

/// The numbers of a folder's segments, oldest first.
pub(super) fn numbers(folder: &Path) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".rows"));
        found.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    found.sort_unstable();
    Ok(found)
}

impl Segment {
    /// A new segment.
    pub(super) fn create(folder: &Path, number: u64) -> io::Result<Self> {
        let path = path(folder, number);
        let mut options = File::options();
        options.create_new(true).append(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&path)?;
        // Nobody else can have it: it is new.
        file.try_lock()?;
        file.write_all(MAGIC)?;
        let bytes = MAGIC.len() as u64;
        Ok(Self { path, file, bytes, names: HashMap::new(), block: Vec::new() })
    }

    /// Goes on with a segment, after cutting off what is torn at its end; none when it isn't whole
    /// before that or another daemon still writes to it, and a new one is the better place.
    pub(super) fn resume(folder: &Path, number: u64) -> io::Result<Option<Self>> {
        let path = path(folder, number);
        let file = File::options().append(true).open(&path)?;
        // The daemon before, after a hand-over. Its numbers for names are not ours.
        if file.try_lock().is_err() {
            return Ok(None);
        }
        let bytes = std::fs::read(&path)?;
        let contents = read(&bytes, |_row, _names| ());
        if contents.damaged > 0 || contents.whole < MAGIC.len() as u64 {
            return Ok(None);
        }
        if contents.torn {
            file.set_len(contents.whole)?;
        }
        let names = contents.names.into_iter().zip(0..);
        let names = names.filter_map(|(name, number)| Some((name?, number))).collect();
        Ok(Some(Self { path, file, bytes: contents.whole, names, block: Vec::new() }))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its length.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes rows, and says how many of them are there. A block that fails leaves the segment as
    /// it was before it.
    pub(super) fn append(&mut self, rows: &[Row]) -> (usize, io::Result<()>) {
        let mut done = 0;
        for rows in rows.chunks(MAX_ROWS) {
            let known = self.names.len();
            if let Err(error) = self.write(rows) {
                self.names.retain(|_name, number| (*number as usize) < known);
                return (done, self.file.set_len(self.bytes).and(Err(error)));
            }
            done += rows.len();
        }
        (done, Ok(()))
    }

    fn write(&mut self, rows: &[Row]) -> io::Result<()> {
        let first = number(self.names.len());
        let mut fresh: Vec<Arc<str>> = Vec::new();
        let mut block = std::mem::take(&mut self.block);
        let mut bytes = Vec::with_capacity(rows.len() * ROW);
        for row in rows {
            let [account, project, model, thread, token] =
                row.names().map(|name| name.map_or(NOBODY, |name| self.number(name, &mut fresh)));
            row.write(Names { account, project, model, thread, token }, &mut bytes);
        }
        block.clear();
        block.resize(FRAME, 0);
        block.extend(first.to_le_bytes());
        block.extend(number(fresh.len()).to_le_bytes());
        block.extend(number(rows.len()).to_le_bytes());
        for name in &fresh {
            block.extend(u16::try_from(name.len()).unwrap_or_default().to_le_bytes());
            block.extend(name.bytes());
        }
        block.extend(bytes);
        let (frame, payload) = block.split_at_mut(FRAME);
        frame.copy_from_slice(&frame_of(payload));
        let written = self.file.write_all(&block);
        if written.is_ok() {
            self.bytes += block.len() as u64;
        }
        self.block = block;
        written
    }

    fn number(&mut self, name: &str, fresh: &mut Vec<Arc<str>>) -> u32 {
        let end = name.floor_char_boundary(MAX_NAME);
        let name = name.get(..end).unwrap_or_default();
        if let Some(number) = self.names.get(name) {
            return *number;
        }
        let (name, number): (Arc<str>, _) = (name.into(), number(self.names.len()));
        self.names.insert(Arc::clone(&name), number);
        fresh.push(name);
        number
    }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(NOBODY)
}

fn frame_of(payload: &[u8]) -> [u8; FRAME] {
    let [a, b, c, d] = number(payload.len()).to_le_bytes();
    let [e, f, g, h] = crc32fast::hash(payload).to_le_bytes();
    [a, b, c, d, e, f, g, h]
}

/// Reads a segment's bytes; `each` gets its rows, in order, with the names so far.
pub(super) fn read(bytes: &[u8], mut each: impl FnMut(&Kept, &[Option<Arc<str>>])) -> Contents {
    let mut contents = Contents::default();
    let Some(mut rest) = bytes.strip_prefix(MAGIC) else {
        contents.torn = MAGIC.starts_with(bytes);
        contents.damaged = u32::from(!contents.torn);
        return contents;
    };
    contents.whole = MAGIC.len() as u64;
    while !rest.is_empty() {
        let Some((frame, behind)) = rest.split_first_chunk::<FRAME>() else {
            contents.torn = true;
            break;
        };
        let [a, b, c, d, ..] = *frame;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if !(HEAD..=MAX_BLOCK).contains(&length) {
            // Where the next block begins can't be told.
            contents.damaged += 1;
            break;
        }
        let Some((payload, next)) = behind.split_at_checked(length) else {
            contents.torn = true;
            break;
        };
        let good = frame_of(payload) == *frame && block(payload, &mut contents.names, &mut each);
        if good && contents.damaged == 0 {
            contents.whole += (FRAME + length) as u64;
        }
        contents.damaged += u32::from(!good);
        rest = next;
    }
    contents
}

/// Reads one block; false when it makes no sense.
fn block(
    payload: &[u8],
    names: &mut Vec<Option<Arc<str>>>,
    each: &mut impl FnMut(&Kept, &[Option<Arc<str>>]),
) -> bool {
    let Some((head, mut rest)) = payload.split_first_chunk::<HEAD>() else { return false };
    let [a, b, c, d, e, f, g, h, i, j, k, l] = *head;
    let word = |bytes| u32::from_le_bytes(bytes) as usize;
    let (first, fresh, rows) = (word([a, b, c, d]), word([e, f, g, h]), word([i, j, k, l]));
    // Names of a block that was passed over are missing. There can't be more than this of them.
    if first < names.len() || first > names.len() + 64 * MAX_ROWS || fresh > NAMES * MAX_ROWS {
        return false;
    }
    names.resize(first, None);
    for _name in 0..fresh {
        let Some((length, behind)) = rest.split_first_chunk() else { return false };
        let Some((name, behind)) = behind.split_at_checked(u16::from_le_bytes(*length).into())
        else {
            return false;
        };
        names.push(str::from_utf8(name).ok().map(Arc::from));
        rest = behind;
    }
    let (whole, odd) = rest.as_chunks::<ROW>();
    if whole.len() != rows || !odd.is_empty() {
        return false;
    }
    whole.iter().for_each(|bytes| each(&Kept::read(bytes), names));
    true
}
