//! The FTP protocol without I/O: bytes in, values out.
