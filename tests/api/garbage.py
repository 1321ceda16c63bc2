"""What clients send that follow no rule."""

from __future__ import annotations


def request(line: bytes, *fields: bytes) -> bytes:
    """The head of one that has method and path right, and whose connection stays open."""
    return b"\r\n".join([line + b" HTTP/1.1", b"Host: 127.0.0.1", *fields, b"", b""])


def head(line: bytes, *fields: bytes) -> bytes:
    return b"\r\n".join([line, b"Host: a", b"Connection: close", *fields, b"", b""])


def get(path: bytes, *fields: bytes) -> bytes:
    return head(b"GET " + path + b" HTTP/1.1", *fields)


def post(body: bytes, *fields: bytes, path: bytes = b"/items/") -> bytes:
    return head(b"POST " + path + b" HTTP/1.1", b"Content-Type: application/json", *fields) + body


def sized(body: bytes, *fields: bytes, path: bytes = b"/items/") -> bytes:
    return post(body, b"Content-Length: %d" % len(body), *fields, path=path)


ITEM = b'{"name": "Mug", "price": 1}'
CHUNKED = b"Transfer-Encoding: chunked"
GIBBERISH = b"GARBAGE \x01\r\n\r\n"

LINES = {
    "no HTTP": b"hello\r\n\r\n",
    "zeros": b"\0" * 200,
    "every byte": bytes(range(256)) * 4,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xab" * 512,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /items/\r\n\r\n",
    "HTTP/1.0": b"GET /livez HTTP/1.0\r\n\r\n",
    "HTTP/9.9": head(b"GET /livez HTTP/9.9"),
    "no method": head(b" /livez HTTP/1.1"),
    "no path": head(b"GET HTTP/1.1"),
    "two paths": head(b"GET /livez /livez HTTP/1.1"),
    "method of nobody": head(b"BREW /items/ HTTP/1.1"),
    "method in small letters": head(b"get /items/ HTTP/1.1"),
    "method that is long": head(b"G" * 70_000 + b" / HTTP/1.1"),
    "CONNECT": head(b"CONNECT a:1 HTTP/1.1"),
    "OPTIONS *": head(b"OPTIONS * HTTP/1.1"),
    "TRACE": head(b"TRACE /items/ HTTP/1.1"),
    "line ends of one byte": b"GET /livez HTTP/1.1\nHost: a\nConnection: close\n\n",
    "line ends before": b"\r\n\r\n" + get(b"/livez"),
}
PATHS = {
    "path that is no UTF-8": get(b"/items/%ff%fe"),
    "path of raw bytes": get(b"/items/\xff\xfe"),
    "path with UTF-8": get("/items/ä".encode()),
    "path with a NUL": get(b"/items/\0"),
    "path with %00": get(b"/problems/%00"),
    "path with a lone surrogate": get(b"/problems/%ed%a0%80"),
    "path with a wrong escape": get(b"/items/%zz%"),
    "path with dots": get(b"/../../etc/passwd"),
    "path with escaped dots": get(b"/docs/assets/1/%2e%2e%2f%2e%2e%2fetc/passwd"),
    "path with a backslash": get(b"/items\\1"),
    "path with a fragment": get(b"/items/#x"),
    "path that is long": get(b"/" + b"x" * 60_000),
    "path that is too long": get(b"/" + b"x" * 200_000),
    "path of slashes": get(b"/" * 5000),
    "no slash": get(b"items/"),
    "another host's": get(b"http://[::1/items/"),
    "another scheme": get(b"gopher://a:99999/livez"),
    "query of raw bytes": get(b"/items/?\xff=\xfe"),
    "query of escapes": get(b"/items/?%ff%00=%ed%a0%80&limit=%00&cursor=%ff"),
    "query of thousands": get(b"/items/?" + b"&".join(b"a%d" % n for n in range(5000))),
    "query that is too large a number": get(b"/items/?limit=" + b"9" * 10_000),
}
FIELDS = {
    "field without a name": get(b"/livez", b": x"),
    "field without a colon": get(b"/livez", b"x"),
    "field with a blank": get(b"/livez", b"X Y: z"),
    "field with a NUL": get(b"/livez", b"X: \0"),
    "field of bytes": get(b"/items/1", b'If-Match: "\xff"', b"X-Request-ID: \xff\xfe", b"Accept: \xff/\xff"),
    "field that is folded": get(b"/livez", b"X: a", b" b"),
    "fields by the thousand": get(b"/livez", *(b"X-%d: x" % n for n in range(5000))),
    "field that is long": get(b"/livez", b"X: " + b"x" * 60_000),
    "field that is too long": get(b"/livez", b"X: " + b"x" * 2_000_000),
    "hosts": get(b"/livez", b"Host: b", b"Host: [", b"Host: \xff"),
    "tags by the thousand": get(b"/items/1", b"If-None-Match: " + b'"a",' * 10_000),
    "tags that never end": get(b"/items/1", b"If-None-Match: " + b'"a"' * 10_000),
    "ranges": get(b"/docs/start.js", b"Range: bytes=9-1,-,x-," + b"0-1," * 5000),
    "X-Forwarded": get(b"/items", b"X-Forwarded-For: \xff, [", b"X-Forwarded-Proto: \xff"),
    "WebSocket": get(b"/items/", b"Upgrade: websocket", b"Connection: Upgrade"),
    "WebSocket with a key": get(
        b"/items/",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        b"Sec-WebSocket-Version: 13",
    ),
    "h2c": get(b"/livez", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"),
    "a body behind an upgrade": sized(ITEM, b"Upgrade: h2c", b"Connection: Upgrade"),
    "a body behind CONNECT": head(b"CONNECT a:1 HTTP/1.1", b"Content-Length: 27") + ITEM,
    "Expect": get(b"/livez", b"Expect: the-worst"),
}
BODIES = {
    "length that is no number": post(ITEM, b"Content-Length: x"),
    "length below 0": post(ITEM, b"Content-Length: -1"),
    "length in plus": post(ITEM, b"Content-Length: +27"),
    "length past 64 bits": post(ITEM, b"Content-Length: 99999999999999999999999"),
    "length of too much": post(ITEM, b"Content-Length: 9999999999"),
    "two lengths": post(ITEM, b"Content-Length: 27", b"Content-Length: 3"),
    "length and chunks": post(b"1\r\n{\r\n0\r\n\r\n", b"Content-Length: 3", CHUNKED),
    "a body behind a GET": get(b"/items/", b"Content-Length: 27") + ITEM,
    "no body": post(b"", b"Content-Length: 0"),
    "a shorter length": post(ITEM, b"Content-Length: 5"),
    "an encoding of nobody": post(ITEM, b"Transfer-Encoding: zip"),
    "an encoding twice": post(b"0\r\n\r\n", b"Transfer-Encoding: chunked, chunked"),
    "a chunk of no size": post(b"zz\r\n{}\r\n0\r\n\r\n", CHUNKED),
    "a chunk of less than 0": post(b"-1\r\n{}\r\n0\r\n\r\n", CHUNKED),
    "a chunk past 64 bits": post(b"f" * 40 + b"\r\n{}\r\n0\r\n\r\n", CHUNKED),
    "a chunk that is longer": post(b"1\r\n" + ITEM + b"\r\n0\r\n\r\n", CHUNKED),
    "chunks with trailers": post(b"2\r\n{}\r\n0\r\nX: \0\xff\r\n\r\n", CHUNKED),
    "chunks of one byte": post(b"".join(b"1\r\n%c\r\n" % byte for byte in ITEM) + b"0\r\n\r\n", CHUNKED),
    "chunks without end": post(b"400\r\n" + b"x" * 1024 + b"\r\n" + b"400\r\n" + b" " * 3_000_000, CHUNKED),
    "compressed": sized(b"\x1f\x8b\x08\0\0\0\0\0") + b"Content-Encoding: gzip",
    "no UTF-8": sized(b'{"name": "\xff", "price": 1}'),
    "zeros for a body": sized(b"\0" * 1000),
    "a number that never ends": sized(b'{"price": ' + b"1" * 500_000),
    "a depth that never ends": sized(b"[" * 900_000),
    "names by the thousand": sized(b"{" + b",".join(b'"%d": 1' % n for n in range(50_000)) + b"}"),
    "one name by the thousand": sized(b"{" + b",".join([b'"price": 1'] * 50_000) + b"}"),
    "lines by the thousand": sized(
        b'{"lines": [' + b",".join([b'{"item_id": 1, "quantity": 1}'] * 20_000) + b"]}", path=b"/orders/"
    ),
    "surrogates": sized(b'{"name": "\\ud800\\udc00\\ud800", "price": 1, "\\udfff": 1}'),
}
# The server has all that it needs, to answer or to close the connection.
ANSWERED = {
    **LINES,
    **PATHS,
    **FIELDS,
    **BODIES,
    "garbage behind a request": get(b"/items/") + bytes(range(256)),
}

KEPT = head(b"GET /items/ HTTP/1.1").replace(b"Connection: close\r\n", b"")

# The client leaves: in the middle of what it has to say, or without listening.
CUT = {
    "nothing": b"",
    "nothing but line ends": b"\r\n" * 100,
    "half a line": b"GET /it",
    "half a head": b"POST /items/ HTTP/1.1\r\nHost: a\r\nContent-Le",
    "half a TLS": b"\x16\x03\x01",
    "no body at all": post(b"", b"Content-Length: 27"),
    "half a body": post(ITEM[:9], b"Content-Length: 27"),
    "half a size": post(b"1", CHUNKED),
    "half a chunk": post(b"1b\r\n" + ITEM[:9], CHUNKED),
    "no last chunk": post(b"1b\r\n" + ITEM + b"\r\n", CHUNKED),
    "half a trailer": post(b"1b\r\n" + ITEM + b"\r\n0\r\nX: ", CHUNKED),
    "a body that is asked for": post(b"", b"Content-Length: 27", b"Expect: 100-continue"),
    "a whole GET": KEPT,
    "a whole POST": sized(ITEM),
    "many requests": KEPT * 100,
    "many requests and a half": KEPT * 20 + KEPT[:-5],
    "a request behind a WebSocket": KEPT.replace(b"Host", b"Upgrade: websocket\r\nHost") + KEPT,
}
