"""Tokens that must be refused, from RFC 7515 (JWS), 7519 (JWT) and 8725 (best practices)."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.kit.tokens import SECRET, claims

#: Signs `header.payload` and returns the raw signature.
Sign = Callable[[bytes], bytes]
Tokens = Iterator[tuple[str, str]]


def encode(part: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


def text(value: Any) -> bytes:
    """JSON as PyJWT writes it; NaN and Infinity go through."""
    return json.dumps(value, separators=(",", ":")).encode()


def assemble(header: bytes, payload: bytes, sign: Sign) -> str:
    """Return a token of any header and payload with a good signature."""
    signed = f"{encode(header)}.{encode(payload)}"
    return f"{signed}.{encode(sign(signed.encode()))}"


def hs256(secret: bytes) -> Sign:
    """Sign with HMAC and SHA-256."""
    return lambda signed: hmac.new(secret, signed, hashlib.sha256).digest()


def es256(key: ec.EllipticCurvePrivateKey) -> Sign:
    """Sign with ECDSA on P-256, in the form of RFC 7518."""

    def sign(signed: bytes) -> bytes:
        r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    return sign


def rs256(key: rsa.RSAPrivateKey) -> Sign:
    """Sign with RSA (PKCS #1 version 1.5) and SHA-256."""
    return lambda signed: key.sign(signed, padding.PKCS1v15(), SHA256())


def eddsa(key: ed25519.Ed25519PrivateKey) -> Sign:
    """Sign with Ed25519."""
    return key.sign


def bad_tokens(
    algorithm: str, sign: Sign, public: bytes = b"", *, trap: str = "http://127.0.0.1:9"
) -> Tokens:
    """Yield a name and a token for each; `sign` is the server's good key, `public` its PEM.

    `trap` is an address that nobody may be lured to.
    """
    header = text({"alg": algorithm, "typ": "JWT"})
    yield from _forms(header, sign)
    yield from _spellings(header, sign)
    yield from _algorithms(algorithm, sign)
    yield from _headers(algorithm, sign, trap)
    yield from _claims(header, sign)
    yield from _subjects(header, sign)
    yield from _encodings(algorithm, header, sign)
    yield from _signatures(header, sign)
    for name, secret in _public_as_secret(public):
        forged = text({"alg": "HS256", "typ": "JWT"})
        yield (
            f"HS256 signed with the public key, {name}",
            assemble(forged, text(claims()), hs256(secret)),
        )


def _forms(header: bytes, sign: Sign) -> Tokens:
    good = assemble(header, text(claims()), sign)
    first, second, third = good.split(".")
    yield from {
        "one part": first,
        "two parts": f"{first}.{second}",
        "four parts": f"{good}.{third}",
        "five parts (JWE)": f"{first}..{third}.{second}.{third}",
        "only dots": "..",
        "many dots": "." * 1_000,
        "no signature": f"{first}.{second}.",
        "no payload": f"{first}..{third}",
        "no header": f".{second}.{third}",
        "parts swapped": f"{second}.{first}.{third}",
        "a blank inside": f"{first}. {second}.{third}",
        "two tokens": f"{good} {good}",
        "words": "let me in",
        "a quote": f'"{good}"',
        "base64 of a password": encode(b"alice:secret"),
        "standard base64 alphabet": f"{first}.{second}.{third[:-2]}+/",
    }.items()
    # RFC 7515, section 7.2: the JSON serialisation has no place in metadata.
    parts = {"protected": first, "payload": second, "signature": third}
    yield "flattened JSON", json.dumps(parts)
    signatures = [{"protected": first, "signature": third}]
    yield "general JSON", json.dumps({"payload": second, "signatures": signatures})


def _spellings(header: bytes, sign: Sign) -> Tokens:
    """Parts as RFC 7515, section 2, does not write them; all else is right, the signature too."""

    def padded(part: bytes) -> str:
        return base64.urlsafe_b64encode(part).decode()

    def strewn(part: bytes) -> str:
        return f"{encode(part)[:4]}!*~ {encode(part)[4:]}"

    # Blanks at the end of JSON mean nothing, and make a length that base64 pads.
    header, payload = (part + b" " * (len(part) % 3 == 0) for part in (header, text(claims())))
    for name, other in {"padding": padded, "characters base64 skips": strewn}.items():
        for place in range(3):
            first, second, third = (other if part == place else encode for part in range(3))
            signed = f"{first(header)}.{second(payload)}"
            yield (
                f"{name} in part {place}",
                f"{signed}.{third(sign(signed.encode()))}",
            )


def _algorithms(algorithm: str, sign: Sign) -> Tokens:
    others: list[Any] = [
        *("none", "None", "NONE", "nOnE", "", " ", algorithm.lower(), f"{algorithm} ", "HS1"),
        *(None, 0, 256, True, [algorithm], {"alg": algorithm}, f"{algorithm}\0", "HS512", "RS512"),
    ]
    for other in others:
        header = text({"alg": other, "typ": "JWT"})
        yield f"alg {other!r}", assemble(header, text(claims()), sign)
        yield f"alg {other!r} unsigned", assemble(header, text(claims()), lambda _signed: b"")
    yield "no alg", assemble(text({"typ": "JWT"}), text(claims()), sign)


def strange_kids(algorithm: str, sign: Sign, *, trap: str = "http://127.0.0.1:9") -> Tokens:
    """Yield tokens whose `kid` names no key of the set, each signed with a key that is in it."""
    kids = (
        *("unknown", "../../../dev/null", "/etc/hostname", "file:///etc/hostname", f"{trap}/keys"),
        *("' OR 1=1 --", "1; DROP TABLE events", "$(reboot)", "|id", "%00", "*", "__proto__"),
        *("k" * 255, "\u202e", "None", "null", "0", " "),
    )
    for kid in kids:
        header = text({"alg": algorithm, "typ": "JWT", "kid": kid})
        yield f"kid {ascii(kid)[:30]}", assemble(header, text(claims()), sign)


def _headers(algorithm: str, sign: Sign, trap: str) -> Tokens:
    own_key = {"kty": "oct", "k": encode(b"x" * 32)}
    keys = f"{trap}/keys"
    extras: list[dict[str, Any]] = [
        *({"jku": keys}, {"x5u": keys}, {"jwk": own_key}, {"x5c": ["AAAA"]}, {"jku": None}),
        *({"jku": keys, "kid": "a"}, {"x5u": keys, "x5t": "a"}, {"JKU": 1, "jku": [keys]}),
        *({"crit": ["exp"]}, {"crit": ["b64"], "b64": False}, {"crit": []}, {"crit": "exp"}),
        *({"b64": False}, {"zip": "DEF"}, {"enc": "A256GCM"}),
        *({"typ": "JWE"}, {"typ": "secevent+jwt"}, {"typ": ""}, {"typ": 1}, {"typ": ["JWT"]}),
        *({"typ": "application/jwt"}, {"typ": None}),
        *({"kid": 1}, {"kid": ["a"]}, {"kid": ""}, {"kid": "a\0b"}, {"kid": "k" * 10_000}),
        *({"kid": "a\nb"}, {"kid": {}}, {"kid": True}),
    ]
    for extra in extras:
        header = text({"alg": algorithm, "typ": "JWT"} | extra)
        yield f"header {str(extra)[:40]}", assemble(header, text(claims()), sign)
    for raw in (b"[]", b"1", b'"x"', b"null", b"{", b"", b"{}" * 2, b"\xff\xfe", b"[" * 2_000):
        yield f"header is {raw[:8]!r}", assemble(raw, text(claims()), sign)
    twice = f'{{"alg":"none","alg":"{algorithm}","typ":"JWT"}}'.encode()
    yield "alg twice", assemble(twice, text(claims()), sign)


def _claims(header: bytes, sign: Sign) -> Tokens:
    now = int(time.time())
    audiences: list[Any] = [[], ["ingest"], ["ingest", "other"], {"a": "ingest"}, True]
    expiries: list[Any] = [now - 60, 0, -1, str(now + 600), True, [], {}, "", "never"]
    wrong: list[dict[str, Any]] = [
        *({name: None} for name in ("exp", "iat", "sub", "aud", "iss")),
        *({"exp": expiry} for expiry in expiries),
        *({"exp": value} for value in (float("nan"), float("inf"), 1e300, now + 600.5, 2**63)),
        *({"exp": now + 86_400 * 30}, {"iat": now + 600}, {"iat": str(now)}, {"iat": float(now)}),
        *({"iat": True}, {"iat": []}, {"iat": float("nan")}, {"nbf": now + 600}, {"nbf": "soon"}),
        *({"nbf": float("inf")}, {"nbf": []}, {"iat": -(2**63)}, {"exp": now - 1_000, "iat": now}),
        *({"aud": value} for value in ("other", "inges", "ingest2", "Ingest", " ingest", "", 1)),
        *({"aud": audience} for audience in audiences),
        *({"iss": value} for value in ("other", "inges", "ingest/", "Ingest", "", 1, ["ingest"])),
        *({"scope": value} for value in (["events:write"], 1, {"a": 1}, True)),
        *({"jti": value} for value in (1, ["a"], {"a": 1}, True)),
        *({"email": value} for value in (1, ["a@b"], "a b@c", "a\n@b", "x" * 321, "\0", {"a": 1})),
    ]
    for other in wrong:
        yield f"claims {str(other)[:50]}", assemble(header, text(claims(**other)), sign)
    for raw in (b"[]", b"1", b'"x"', b"null", b"{", b"", b"{}", b"[" * 2_000, b"\xff"):
        yield f"claims are {raw[:8]!r}", assemble(header, raw, sign)
    for name in ("exp", "sub", "aud", "iss", "scope"):
        once = text(claims())[:-1]
        twice = once + f',"{name}":'.encode() + text(claims()[name]) + b"}"
        yield f"{name} twice", assemble(header, twice, sign)


def _subjects(header: bytes, sign: Sign) -> Tokens:
    for subject in (
        "",
        "a\0b",
        "a\nb",
        "\x1b[31m",
        "\x7f",
        "\x85",
        "\ud800",
        "x" * 256,
        "x" * 2_000,
    ):
        yield f"sub {ascii(subject)[:20]}", assemble(header, text(claims(sub=subject)), sign)
    for other in (1, 1.5, True, [], ["alice"], {}, {"a": 1}):
        yield f"sub {other!r}", assemble(header, text(claims(sub=other)), sign)


def _encodings(algorithm: str, header: bytes, sign: Sign) -> Tokens:
    payload = json.dumps(claims())
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"):
        yield f"claims in {encoding}", assemble(header, payload.encode(encoding), sign)
        as_text = json.dumps({"alg": algorithm, "typ": "JWT"})
        yield f"header in {encoding}", assemble(as_text.encode(encoding), payload.encode(), sign)
    yield (
        "invalid UTF-8 in sub",
        assemble(header, payload.encode().replace(b"alice", b"\xff"), sign),
    )
    yield "overlong UTF-8", assemble(header, payload.encode().replace(b"alice", b"\xc0\xae"), sign)


def _signatures(header: bytes, sign: Sign) -> Tokens:
    payload = text(claims())
    size = len(sign(b""))
    for name, other in {
        "zeros": bytes(size),
        "empty": b"",
        "one byte": b"\0",
        "too long": bytes(size * 2),
        "ones": b"\xff" * size,
    }.items():
        yield f"signature of {name}", assemble(header, payload, lambda _signed, it=other: it)  # type: ignore[misc]
    yield "signature cut", assemble(header, payload, lambda signed: sign(signed)[:-1])
    yield "signature extended", assemble(header, payload, lambda signed: sign(signed) + b"\0")
    yield "signature of other claims", assemble(header, payload, lambda _signed: sign(b"other"))
    for secret in (b"", b"secret", SECRET.encode()[:-1], SECRET.upper().encode(), b"x" * 64):
        yield f"HMAC with {secret[:8]!r}", assemble(header, payload, hs256(secret))
    yield (
        "ECDSA with a key of its own",
        assemble(header, payload, es256(ec.generate_private_key(ec.SECP256R1()))),
    )
    rsa_header = text({"alg": "RS256", "typ": "JWT"})
    pem = rsa.generate_private_key(65_537, 2_048).public_key()
    yield "RS256 by name", assemble(rsa_header, payload, lambda _signed: bytes(256))
    spki = pem.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    yield "HMAC with some public key", assemble(header, payload, hs256(spki))


def _public_as_secret(public: bytes) -> Iterator[tuple[str, bytes]]:
    """The public key as HMAC secret, in the spellings that got past guards before."""
    if public:
        yield "as it is", public
        yield "stripped", public.strip()
        yield "CRLF", public.replace(b"\n", b"\r\n")
        yield "blanks", public.replace(b"\n", b" \n")
        yield "one line", public.replace(b"\n", b"")
        yield "without armour", b"".join(public.splitlines()[1:-1])
