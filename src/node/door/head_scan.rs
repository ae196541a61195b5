//! Looks for heads that give a body two lengths.

/// The longest line start that is looked at.
const LINE_START: usize = "transfer-encoding:".len();

/// Reads the bytes of one HTTP/1 head for `Content-Length` beside `Transfer-Encoding`.
///
/// hyper settles the two as RFC 9112 allows and drops the length, so that nobody behind it can tell; a client that sends
/// both means harm to somebody, and is refused.
#[derive(Debug, Default)]
pub(super) struct HeadScan {
    line: Vec<u8>,
    line_bytes: usize,
    begun: bool,
    ended: bool,
    length: bool,
    encoding: bool,
}

impl HeadScan {
    /// Takes the next bytes; true once the head has ended and has both.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> bool {
        for byte in bytes {
            if self.ended {
                break;
            }
            match byte {
                b'\n' => self.end_line(),
                b'\r' => {}
                _ => {
                    self.line_bytes += 1;
                    if self.line.len() < LINE_START {
                        self.line.push(byte.to_ascii_lowercase());
                    }
                }
            }
        }
        self.ended && self.length && self.encoding
    }

    fn end_line(&mut self) {
        // empty lines before a request are allowed and mean nothing
        self.ended = self.begun && self.line_bytes == 0;
        self.begun |= self.line_bytes > 0;
        self.length |= self.line.starts_with(b"content-length:");
        self.encoding |= self.line.starts_with(b"transfer-encoding:");
        self.line.clear();
        self.line_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, both: bool) {
        assert_eq!(HeadScan::default().feed(text.as_bytes()), both, "{text:?}");
        let mut bytewise = HeadScan::default();
        let found = text.bytes().fold(false, |_, byte| bytewise.feed(&[byte]));
        assert_eq!(found, both, "{text:?} byte by byte");
    }

    #[test]
    fn two_lengths_in_one_head_are_found() {
        check("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTRANSFER-ENCODING: chunked\r\n\r\n", true);
        check("\r\nPOST / HTTP/1.1\ntransfer-encoding:x\ncontent-length:1\n\n", true);
        check("POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\ntransfer-encoding: chunked\r\n\r\n", false);
        check("POST / HTTP/1.1\r\nx: content-length: transfer-encoding:\r\ncontent-lengths: 1\r\n\r\n", false);
    }
}
