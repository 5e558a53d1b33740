//! What the kernel knows by number, and by which path it is reached.
//!
//! The kernel asks for a name once and goes on by number. The adapter is asked by path, so that the way to each number is kept
//! here: its directory's number and its name there, for as long as the kernel remembers the number.

use std::collections::HashMap;

/// The number of the root directory, by the kernel's rule.
pub(crate) const ROOT: u64 = 1;
/// Directories of the longest way; a longer one would be a ring.
const DEEPEST: usize = 4096;

#[derive(Debug)]
struct Node {
    /// Its directory and its name there; `None` if that name was taken away.
    at: Option<(u64, Vec<u8>)>,
    /// How often the kernel was told of it and has not forgotten it.
    lookups: u64,
}

#[derive(Debug)]
pub(crate) struct Nodes {
    nodes: HashMap<u64, Node>,
    names: HashMap<(u64, Vec<u8>), u64>,
    /// The file system's own number of its root.
    root: u64,
}

impl Nodes {
    pub(crate) fn new(root: u64) -> Self {
        Self { nodes: HashMap::new(), names: HashMap::new(), root }
    }

    /// The kernel's number of what the file system calls so: the same, but that the root and whoever has its number change
    /// places.
    pub(crate) fn number(&self, own: u64) -> u64 {
        match own {
            own if own == self.root => ROOT,
            ROOT => self.root,
            own => own,
        }
    }

    /// The kernel is told that a name leads to a number.
    pub(crate) fn found(&mut self, parent: u64, name: &[u8], number: u64) {
        if number == ROOT {
            return;
        }
        let at = (parent, name.to_vec());
        if let Some(other) = self.names.insert(at.clone(), number).filter(|other| *other != number) {
            self.lose(other, &at);
        }
        let node = self.nodes.entry(number).or_insert(Node { at: None, lookups: 0 });
        node.lookups += 1;
        if let Some(before) = node.at.replace(at.clone()).filter(|before| *before != at) {
            // It was renamed by somebody else, or has several names: the latest one is used.
            if self.names.get(&before) == Some(&number) {
                self.names.remove(&before);
            }
        }
    }

    /// The kernel forgets a number as often.
    pub(crate) fn forget(&mut self, number: u64, lookups: u64) {
        let Some(node) = self.nodes.get_mut(&number) else { return };
        node.lookups = node.lookups.saturating_sub(lookups);
        if node.lookups == 0 {
            let at = self.nodes.remove(&number).and_then(|node| node.at);
            if let Some(at) = at.filter(|at| self.names.get(at) == Some(&number)) {
                self.names.remove(&at);
            }
        }
    }

    /// A name was taken away.
    pub(crate) fn removed(&mut self, parent: u64, name: &[u8]) {
        let at = (parent, name.to_vec());
        if let Some(number) = self.names.remove(&at) {
            self.lose(number, &at);
        }
    }

    fn lose(&mut self, number: u64, at: &(u64, Vec<u8>)) {
        if let Some(node) = self.nodes.get_mut(&number)
            && node.at.as_ref() == Some(at)
        {
            node.at = None;
        }
    }

    /// A name became another, whose file is gone.
    pub(crate) fn renamed(&mut self, from: (u64, &[u8]), to: (u64, &[u8])) {
        let to = (to.0, to.1.to_vec());
        self.removed(to.0, &to.1);
        if let Some(number) = self.names.remove(&(from.0, from.1.to_vec())) {
            if let Some(node) = self.nodes.get_mut(&number) {
                node.at = Some(to.clone());
            }
            self.names.insert(to, number);
        }
    }

    /// The path of a number; `None` if none leads to it any more.
    pub(crate) fn path(&self, number: u64) -> Option<Vec<u8>> {
        let (mut names, mut at) = (Vec::new(), number);
        while at != ROOT {
            let (parent, name) = self.nodes.get(&at)?.at.as_ref()?;
            names.push(name.as_slice());
            at = *parent;
            if names.len() > DEEPEST {
                return None;
            }
        }
        names.push(b"");
        names.reverse();
        let path = names.join(b"/".as_slice());
        Some(if path.is_empty() { b"/".to_vec() } else { path })
    }

    /// The number of the directory around one; of the root its own.
    pub(crate) fn parent(&self, number: u64) -> u64 {
        let parent = self.nodes.get(&number).and_then(|node| node.at.as_ref()).map(|(parent, _)| *parent);
        parent.unwrap_or(ROOT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(nodes: &Nodes, number: u64) -> Option<String> {
        nodes.path(number).map(|path| String::from_utf8(path).unwrap())
    }

    #[test]
    fn numbers_lead_to_paths_through_renames() {
        let mut nodes = Nodes::new(2);
        assert_eq!((nodes.number(2), nodes.number(1), nodes.number(7)), (ROOT, 2, 7));
        nodes.found(ROOT, b"a", 10);
        nodes.found(10, b"b", 11);
        nodes.found(11, b"c", 12);
        nodes.found(ROOT, b"x", 20);
        assert_eq!(path(&nodes, ROOT).as_deref(), Some("/"));
        assert_eq!(path(&nodes, 12).as_deref(), Some("/a/b/c"));
        nodes.renamed((10, b"b"), (ROOT, b"x"));
        assert_eq!(path(&nodes, 12).as_deref(), Some("/x/c"));
        assert_eq!((nodes.parent(12), nodes.parent(11), nodes.parent(ROOT)), (11, ROOT, ROOT));
        assert_eq!(path(&nodes, 20), None, "it was replaced");
        nodes.removed(11, b"c");
        assert_eq!(path(&nodes, 12), None);
        nodes.renamed((10, b"never looked up"), (10, b"y"));
        assert_eq!(path(&nodes, 99), None);
    }

    #[test]
    fn what_the_kernel_forgets_is_forgotten() {
        let mut nodes = Nodes::new(1);
        for _ in 0..3 {
            nodes.found(ROOT, b"a", 10);
        }
        nodes.forget(10, 2);
        assert_eq!(path(&nodes, 10).as_deref(), Some("/a"));
        nodes.forget(10, 1);
        nodes.forget(10, 1);
        nodes.forget(ROOT, 1);
        assert_eq!(path(&nodes, 10), None);
        assert!(nodes.nodes.is_empty() && nodes.names.is_empty());
    }

    #[test]
    fn a_name_that_leads_to_another_file_now_is_not_the_old_ones() {
        let mut nodes = Nodes::new(1);
        nodes.found(ROOT, b"a", 10);
        nodes.found(ROOT, b"a", 11);
        assert_eq!((path(&nodes, 10), path(&nodes, 11).as_deref()), (None, Some("/a")));
        nodes.forget(10, 1);
        assert_eq!(path(&nodes, 11).as_deref(), Some("/a"));
        // Two names of one file: the later one.
        nodes.found(ROOT, b"b", 11);
        assert_eq!(path(&nodes, 11).as_deref(), Some("/b"));
        nodes.removed(ROOT, b"a");
        assert_eq!(path(&nodes, 11).as_deref(), Some("/b"));
        nodes.forget(11, 2);
        assert!(nodes.nodes.is_empty() && nodes.names.is_empty(), "{nodes:?}");
    }

    #[test]
    fn a_ring_of_directories_has_no_path() {
        let mut nodes = Nodes::new(1);
        nodes.found(11, b"a", 10);
        nodes.found(10, b"b", 11);
        assert_eq!(path(&nodes, 10), None);
    }
}
