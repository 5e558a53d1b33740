//! Against e2fsprogs: what debugfs says of an image, file by file, and what has to be refused.

mod agree;
