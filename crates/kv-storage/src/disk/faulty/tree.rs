//! Files and directories with what is durable, what is not, and what readers see.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path};
use std::sync::Arc;

use bytes::Bytes;

/// The root directory.
pub(super) const ROOT: u64 = 0;

/// How far an unsynced operation has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// No sync was tried.
    Fresh,
    /// A sync covered it and failed: the kernel calls it clean, so no later sync makes it durable.
    Abandoned,
    /// A sync covered it; kept in the list only because an abandoned operation stands before it.
    Settled,
}

/// A change of a file's content.
#[derive(Debug, Clone)]
pub(super) enum FileOp {
    Write { offset: u64, bytes: Bytes },
    SetLen(u64),
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Node {
    File(u64),
    Dir(u64),
}

/// A change of a directory's names.
#[derive(Debug, Clone)]
pub(super) enum DirOp {
    Link { name: String, node: Node },
    Unlink { name: String },
    Rename { from: String, to: String },
}

#[derive(Debug, Clone, Default)]
pub(super) struct Inode {
    pub(super) durable: Arc<Vec<u8>>,
    pub(super) pending: Vec<(Stage, FileOp)>,
    pub(super) current: Arc<Vec<u8>>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Dir {
    pub(super) durable: BTreeMap<String, Node>,
    pub(super) pending: Vec<(Stage, DirOp)>,
    pub(super) current: BTreeMap<String, Node>,
}

#[derive(Debug, Clone)]
pub(super) struct Tree {
    pub(super) files: BTreeMap<u64, Inode>,
    pub(super) dirs: BTreeMap<u64, Dir>,
    next: u64,
}

impl Default for Tree {
    fn default() -> Self {
        Self { files: BTreeMap::new(), dirs: BTreeMap::from([(ROOT, Dir::default())]), next: 1 }
    }
}

pub(super) fn apply_file(image: &mut Vec<u8>, op: &FileOp) {
    match op {
        FileOp::Write { offset, bytes } => {
            let start = usize::try_from(*offset).expect("a virtual file fits memory");
            let end = start + bytes.len();
            if image.len() < end && !bytes.is_empty() {
                image.resize(end, 0);
            }
            if let Some(place) = image.get_mut(start..end) {
                place.copy_from_slice(bytes);
            }
        }
        FileOp::SetLen(len) => image.resize(usize::try_from(*len).expect("a virtual file fits memory"), 0),
    }
}

pub(super) fn apply_dir(names: &mut BTreeMap<String, Node>, op: &DirOp) {
    match op {
        DirOp::Link { name, node } => {
            names.insert(name.clone(), *node);
        }
        DirOp::Unlink { name } => {
            names.remove(name);
        }
        DirOp::Rename { from, to } => {
            if let Some(node) = names.remove(from) {
                names.insert(to.clone(), node);
            }
        }
    }
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no {} on the virtual disk", path.display()))
}

fn parts(path: &Path) -> impl Iterator<Item = String> + '_ {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
        _ => None,
    })
}

impl Tree {
    fn node(&self, path: &Path) -> Option<Node> {
        let mut node = Node::Dir(ROOT);
        for name in parts(path) {
            let Node::Dir(dir) = node else { return None };
            node = *self.dirs.get(&dir)?.current.get(&name)?;
        }
        Some(node)
    }

    fn dir(&self, path: &Path) -> io::Result<u64> {
        match self.node(path) {
            Some(Node::Dir(dir)) => Ok(dir),
            _ => Err(not_found(path)),
        }
    }

    /// The directory of a path and its last name.
    fn place(&self, path: &Path) -> io::Result<(u64, String)> {
        let name = parts(path).last().ok_or_else(|| not_found(path))?;
        Ok((self.dir(path.parent().unwrap_or_else(|| Path::new("")))?, name))
    }

    pub(super) fn file(&self, path: &Path) -> io::Result<u64> {
        match self.node(path) {
            Some(Node::File(inode)) => Ok(inode),
            _ => Err(not_found(path)),
        }
    }

    pub(super) fn exists(&self, path: &Path) -> bool {
        self.node(path).is_some()
    }

    pub(super) fn list(&self, path: &Path) -> Vec<String> {
        let dir = self.dir(path).ok().and_then(|dir| self.dirs.get(&dir));
        dir.map(|dir| dir.current.keys().cloned().collect()).unwrap_or_default()
    }

    fn change(&mut self, dir: u64, op: DirOp) {
        let dir = self.dirs.get_mut(&dir).expect("a resolved directory exists");
        apply_dir(&mut dir.current, &op);
        dir.pending.push((Stage::Fresh, op));
    }

    fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(super) fn create(&mut self, path: &Path) -> io::Result<u64> {
        let (dir, name) = self.place(path)?;
        if self.exists(path) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, path.display().to_string()));
        }
        let inode = self.next();
        self.files.insert(inode, Inode::default());
        self.change(dir, DirOp::Link { name, node: Node::File(inode) });
        Ok(inode)
    }

    pub(super) fn create_dir_all(&mut self, path: &Path) -> io::Result<()> {
        let mut at = ROOT;
        for name in parts(path) {
            match self.dirs.get(&at).and_then(|dir| dir.current.get(&name)) {
                Some(Node::Dir(dir)) => at = *dir,
                Some(Node::File(_)) => {
                    return Err(io::Error::new(io::ErrorKind::AlreadyExists, path.display().to_string()));
                }
                None => {
                    let dir = self.next();
                    self.dirs.insert(dir, Dir::default());
                    self.change(at, DirOp::Link { name, node: Node::Dir(dir) });
                    at = dir;
                }
            }
        }
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let node = self.node(from).ok_or_else(|| not_found(from))?;
        let ((from_dir, from), (to_dir, to)) = (self.place(from)?, self.place(to)?);
        if from_dir == to_dir {
            self.change(from_dir, DirOp::Rename { from, to });
        } else {
            self.change(to_dir, DirOp::Link { name: to, node });
            self.change(from_dir, DirOp::Unlink { name: from });
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.file(path)?;
        let (dir, name) = self.place(path)?;
        self.change(dir, DirOp::Unlink { name });
        Ok(())
    }

    pub(super) fn remove_dir_all(&mut self, path: &Path) -> io::Result<()> {
        let Ok(dir) = self.dir(path) else { return Ok(()) };
        for name in self.list(path) {
            let inner = path.join(&name);
            match self.node(&inner) {
                Some(Node::Dir(_)) => self.remove_dir_all(&inner)?,
                Some(Node::File(_)) => self.change(dir, DirOp::Unlink { name }),
                None => {}
            }
        }
        let (parent, name) = self.place(path)?;
        self.change(parent, DirOp::Unlink { name });
        Ok(())
    }

    pub(super) fn sync_dir(&mut self, path: &Path, succeeds: bool) -> io::Result<()> {
        let dir = self.dir(path)?;
        let dir = self.dirs.get_mut(&dir).expect("a resolved directory exists");
        if settle(&mut dir.pending, succeeds) {
            dir.durable = dir.current.clone();
            dir.pending.clear();
        }
        Ok(())
    }

    fn inode(&self, inode: u64) -> &Inode {
        self.files.get(&inode).expect("an open file exists until the disk is dropped")
    }

    fn inode_mut(&mut self, inode: u64) -> &mut Inode {
        self.files.get_mut(&inode).expect("an open file exists until the disk is dropped")
    }

    fn apply(&mut self, inode: u64, op: FileOp) {
        let file = self.inode_mut(inode);
        apply_file(Arc::make_mut(&mut file.current), &op);
        file.pending.push((Stage::Fresh, op));
    }

    pub(super) fn write(&mut self, inode: u64, offset: u64, bytes: &[u8]) {
        self.apply(inode, FileOp::Write { offset, bytes: Bytes::copy_from_slice(bytes) });
    }

    pub(super) fn set_len(&mut self, inode: u64, bytes: u64) {
        self.apply(inode, FileOp::SetLen(bytes));
    }

    pub(super) fn read(&self, inode: u64, offset: u64, buffer: &mut [u8]) -> usize {
        let image = &self.inode(inode).current;
        let rest = usize::try_from(offset).ok().and_then(|start| image.get(start..)).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..count), rest.get(..count)) {
            to.copy_from_slice(from);
        }
        count
    }

    pub(super) fn len(&self, inode: u64) -> u64 {
        self.inode(inode).current.len() as u64
    }

    pub(super) fn sync(&mut self, inode: u64, succeeds: bool) {
        let file = self.inode_mut(inode);
        if settle(&mut file.pending, succeeds) {
            // Applied rather than shared with the current image: sharing would copy the file at its next write.
            for (_, op) in file.pending.drain(..) {
                apply_file(Arc::make_mut(&mut file.durable), &op);
            }
        }
    }

    pub(super) fn flip(&mut self, inode: u64, offset: u64, bit: u8) -> bool {
        let file = self.inode_mut(inode);
        let Ok(offset) = usize::try_from(offset) else { return false };
        let mut found = false;
        for image in [&mut file.durable, &mut file.current] {
            if let Some(byte) = Arc::make_mut(image).get_mut(offset) {
                *byte ^= 1 << (bit % 8);
                found = true;
            }
        }
        found
    }

    /// Bytes of all files that have a name.
    pub(super) fn used_bytes(&self) -> u64 {
        let mut linked = BTreeSet::new();
        self.walk(ROOT, &mut linked);
        linked.iter().map(|inode| self.len(*inode)).sum()
    }

    fn walk(&self, dir: u64, linked: &mut BTreeSet<u64>) {
        for node in self.dirs.get(&dir).into_iter().flat_map(|dir| dir.current.values()) {
            match node {
                Node::File(inode) => {
                    linked.insert(*inode);
                }
                Node::Dir(dir) => self.walk(*dir, linked),
            }
        }
    }

    /// The same content, all of it durable.
    pub(super) fn settled(&self) -> Self {
        let mut tree = self.clone();
        for file in tree.files.values_mut() {
            file.durable = Arc::clone(&file.current);
            file.pending.clear();
        }
        for dir in tree.dirs.values_mut() {
            dir.durable = dir.current.clone();
            dir.pending.clear();
        }
        tree
    }
}

/// Moves the fresh operations on after a sync; true if nothing stands between them and the durable image.
fn settle<T>(pending: &mut [(Stage, T)], succeeds: bool) -> bool {
    for (stage, _) in pending.iter_mut().filter(|(stage, _)| *stage == Stage::Fresh) {
        *stage = if succeeds { Stage::Settled } else { Stage::Abandoned };
    }
    succeeds && pending.iter().all(|(stage, _)| *stage == Stage::Settled)
}
