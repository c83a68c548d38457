//! Small files of the data directory that are replaced wholly or not at all.
//!
//! Format: magic, version (2 bytes), two zero bytes, length (4 bytes), CRC32C of all before and of the content, content;
//! numbers are little-endian.

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::data_dir::{DataDirError, io_error};
use crate::disk::{Disk, DiskFile};

pub(crate) const HEADER_BYTES: usize = 16;

/// What is the same in every version of one file.
pub(crate) struct SmallFile {
    pub(crate) name: &'static str,
    /// Where the next content is written before it takes the file's place.
    pub(crate) tmp: &'static str,
    pub(crate) magic: [u8; 4],
    pub(crate) version: u16,
    pub(crate) content_max: usize,
}

impl SmallFile {
    /// What [`SmallFile::write`] wrote last; `None` if it never did.
    pub(crate) fn read(&self, disk: &dyn Disk) -> Result<Option<Bytes>, DataDirError> {
        let path = Path::new(self.name);
        let file = match disk.open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("open", path)(error)),
        };
        // One byte more than the longest file tells a longer one.
        let mut bytes = vec![0; HEADER_BYTES + self.content_max + 1];
        let count = file.read_at(0, &mut bytes).map_err(io_error("read", path))?;
        bytes.truncate(count);
        self.decode(&Bytes::from(bytes)).map(Some)
    }

    /// Replaces the content, wholly or not at all; durable on return.
    pub(crate) fn write(&self, disk: &dyn Disk, content: &[u8]) -> Result<(), DataDirError> {
        if content.len() > self.content_max {
            let (bytes, limit) = (content.len(), self.content_max);
            return Err(DataDirError::TooLong { file: self.name, bytes, limit });
        }
        self.replace(disk, |file| file.write_at(0, &self.encode(content))).map(drop)
    }

    /// Puts what `fill` writes into a new file in the place of the old one, wholly or not at all; durable on return.
    pub(crate) fn replace(
        &self,
        disk: &dyn Disk,
        fill: impl FnOnce(&Arc<dyn DiskFile>) -> io::Result<()>,
    ) -> Result<Arc<dyn DiskFile>, DataDirError> {
        let (tmp, path) = (Path::new(self.tmp), Path::new(self.name));
        match disk.remove(tmp) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("remove", tmp)(error));
            }
            Ok(()) | Err(_) => {}
        }
        let file = disk.create(tmp).map_err(io_error("create", tmp))?;
        fill(&file).map_err(io_error("write", tmp))?;
        file.sync().map_err(io_error("sync", tmp))?;
        disk.rename(tmp, path).map_err(io_error("rename", tmp))?;
        disk.sync_dir(Path::new("")).map_err(io_error("sync the directory of", path))?;
        Ok(file)
    }

    pub(crate) fn damaged(&self, what: &'static str) -> DataDirError {
        DataDirError::Damaged { file: self.name, what }
    }

    pub(crate) fn encode(&self, content: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + content.len());
        bytes.extend_from_slice(&self.magic);
        bytes.extend_from_slice(&self.version.to_le_bytes());
        bytes.extend_from_slice(&[0, 0]);
        let length = u32::try_from(content.len()).expect("the length was checked");
        bytes.extend_from_slice(&length.to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), content);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes.extend_from_slice(content);
        bytes
    }

    pub(crate) fn decode(&self, bytes: &Bytes) -> Result<Bytes, DataDirError> {
        let header: &[u8; HEADER_BYTES] =
            bytes.first_chunk().ok_or_else(|| self.damaged("it is shorter than its header"))?;
        let [m0, m1, m2, m3, v0, v1, _, _, l0, l1, l2, l3, c0, c1, c2, c3] = *header;
        if [m0, m1, m2, m3] != self.magic {
            return Err(self.damaged("it does not begin with the magic number"));
        }
        let content = bytes.slice(HEADER_BYTES..);
        let before = header.get(..HEADER_BYTES - 4).unwrap_or_default();
        if crc32c::crc32c_append(crc32c::crc32c(before), &content) != u32::from_le_bytes([c0, c1, c2, c3]) {
            return Err(self.damaged("its checksum does not match"));
        }
        // After the checksum: a flipped bit in the version is damage, not a later release.
        let found = u16::from_le_bytes([v0, v1]);
        if found != self.version {
            return Err(DataDirError::Version { file: self.name, found, known: self.version });
        }
        if u64::from(u32::from_le_bytes([l0, l1, l2, l3])) != content.len() as u64 {
            return Err(self.damaged("its length does not match"));
        }
        Ok(content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::faulty::VirtualDisk;

    const FILE: SmallFile =
        SmallFile { name: "file", tmp: "file.tmp", magic: *b"TEST", version: 1, content_max: 64 };

    #[test]
    fn damage_is_an_error_and_never_absence() {
        let disk = VirtualDisk::new();
        FILE.write(&disk, b"content").unwrap();
        for offset in 0..(HEADER_BYTES + 7) as u64 {
            let bad = disk.copy();
            assert!(bad.flip(Path::new(FILE.name), offset, 3));
            assert!(FILE.read(&bad).is_err(), "offset {offset}");
        }
        let encoded = Bytes::from(FILE.encode(b"content"));
        for len in 0..encoded.len() {
            assert!(FILE.decode(&encoded.slice(..len)).is_err(), "length {len}");
        }
        assert!(FILE.write(&disk, &[0; 65]).unwrap_err().to_string().contains("too long"));
        let later = SmallFile { version: 2, ..FILE };
        later.write(&disk, b"content").unwrap();
        let error = FILE.read(&disk).unwrap_err().to_string();
        assert_eq!(error, "the file file has format 2; this release reads format 1");
    }
}
