#!/usr/bin/env python3
"""Makes tests/oracles/images: odd pictures, what they decode to, and resamplings, with Pillow as the oracle.

    make_image_goldens.py            writes images/ beside this file

cases.json lists decodings: a file, the RGB picture it must become (or null: it must be refused) and the most that a
value may differ. resizes.json lists resamplings of source.png: box, size and the result. Needs Pillow >= 13 and numpy.
"""
import io, json, os, struct, zlib
import numpy as np
from PIL import Image

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "images")
BACKGROUND = np.array([250, 100, 30])
cases = []


def save(name, data):
    with open(os.path.join(FOLDER, name), "wb") as out:
        out.write(data)


def expect(name, data, rgb, tolerance=0):
    """`data` must decode to rgb (h, w, 3), or be refused where rgb is None."""
    save(name, data)
    wanted = None
    if rgb is not None:
        wanted = os.path.splitext(name)[0] + ".wanted.png"
        Image.fromarray(np.asarray(rgb, np.uint8)).save(os.path.join(FOLDER, wanted), optimize=True)
    cases.append({"file": name, "wanted": wanted, "tolerance": tolerance})


def picture(width, height):
    """Smooth colours, a sharp edge and one odd corner, so that every turn of it differs."""
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([x * 255 // max(1, width - 1), y * 255 // max(1, height - 1), (x + 2 * y) * 5 % 256], -1)
    rgb[: height // 3, : width // 4] = [255, 255, 0]
    return rgb.astype(np.uint8)


# ---- PNG, written by hand so that every bit is meant -------------------------------------------------------------
def chunk(kind, data, crc=None):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) if crc is None else crc)


def pack_rows(samples, depth):
    """(h, w, channels) -> rows of packed samples, filter 0 in front."""
    out = b""
    for row in samples:
        flat = row.reshape(-1)
        if depth == 16:
            line = flat.astype(">u2").tobytes()
        elif depth == 8:
            line = flat.astype(np.uint8).tobytes()
        else:
            bits = "".join(format(int(v), f"0{depth}b") for v in flat)
            bits += "0" * (-len(bits) % 8)
            line = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
        out += b"\0" + line
    return out


ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def png(samples, depth, colour, interlaced=False, before=b"", after=b"", crc=None, end=True, size=None):
    height, width = size or samples.shape[:2]
    if interlaced:
        raw = b"".join(pack_rows(samples[y::dy, x::dx], depth) for x, y, dx, dy in ADAM7 if samples[y::dy, x::dx].size)
    else:
        raw = pack_rows(samples, depth)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(raw, 9), crc) + after
    return data + (chunk(b"IEND", b"") if end else b"")


def over(rgb, alpha):
    """(h, w, 3) under alpha (h, w) of 0..255 over the background, rounded."""
    a = alpha.astype(int)[..., None]
    return (rgb.astype(int) * a + BACKGROUND * (255 - a) + 127) // 255


def grey(values):
    return np.repeat(values[..., None], 3, -1)


def make_png():
    rgb = picture(13, 9)
    y, x = np.mgrid[0:9, 0:13]
    for depth in (1, 2, 4, 8):
        values = (x + 2 * y) % (1 << depth)
        expect(f"grey{depth}.png", png(values[..., None], depth, 0), grey(values * (255 // ((1 << depth) - 1))))
        palette = picture(1 << depth, 1)[0]
        plte = chunk(b"PLTE", palette.tobytes())
        expect(f"palette{depth}.png", png(values[..., None], depth, 3, depth == 2, plte), palette[values])
    values = (x * 5000 + y * 1999) % 65536
    expect("grey16.png", png(values[..., None], 16, 0), grey((values * 255 + 32895) // 65535), 1)
    wide = rgb.astype(int) * 257
    expect("rgb16.png", png(wide, 16, 2), rgb)
    expect("interlaced.png", png(rgb, 8, 2, True), rgb)
    expect("one_pixel.png", png(rgb[:1, :1], 8, 2, True), rgb[:1, :1])
    alpha = (x * 20).astype(np.uint8)
    expect("rgba.png", png(np.dstack([rgb, alpha]), 8, 6), over(rgb, alpha))
    expect("rgba_interlaced.png", png(np.dstack([rgb, alpha]), 8, 6, True), over(rgb, alpha))
    expect("rgba16.png", png(np.dstack([wide, alpha.astype(int) * 257]), 16, 6), over(rgb, alpha))
    expect("grey_alpha.png", png(np.dstack([rgb[..., 0], alpha]), 8, 4), over(grey(rgb[..., 0]), alpha))
    palette = picture(16, 1)[0]
    values = (x + y) % 16
    transparency = np.arange(0, 256, 32, dtype=np.uint8)  # 8 of 16 entries; the rest is opaque
    full = np.concatenate([transparency, np.full(8, 255, np.uint8)])
    before = chunk(b"PLTE", palette.tobytes()) + chunk(b"tRNS", transparency.tobytes())
    expect("palette_alpha.png", png(values[..., None], 4, 3, False, before), over(palette[values], full[values]))
    key = chunk(b"tRNS", struct.pack(">HHH", *[int(v) for v in rgb[0, 0]]))
    opaque = np.where((rgb == rgb[0, 0]).all(-1), 0, 255)
    expect("rgb_key.png", png(rgb, 8, 2, False, key), over(rgb, opaque))
    bomb = zlib.compress(bytes(64 << 20), 9)  # 64 MiB in 64 KiB
    expect("text_bomb.png", png(rgb, 8, 2, False, chunk(b"zTXt", b"Comment\0\0" + bomb)), rgb)
    expect("profile_bomb.png", png(rgb, 8, 2, False, chunk(b"iCCP", b"p\0\0" + bomb)), rgb)
    expect("wrong_crc.png", png(rgb, 8, 2, crc=12345), None)
    expect("no_end.png", png(rgb, 8, 2, end=False), None)
    expect("cut.png", png(rgb, 8, 2)[:-40], None)
    expect("huge.png", png(rgb, 8, 2, size=(2**31 - 1, 2**31 - 1)), None)
    expect("pixel_bomb.png", png(rgb, 8, 2, size=(13000, 13000)), None)
    expect("bad_text_crc.png", png(rgb, 8, 2, False, chunk(b"tEXt", b"a\0b", 1)), None)
    expect("turned.png", png(rgb, 8, 2, False, b"", chunk(b"eXIf", exif(6))), np.rot90(rgb, -1))


# ---- JPEG --------------------------------------------------------------------------------------------------------
def exif(orientation, order=">", kind=3):
    head = b"MM\0*" if order == ">" else b"II*\0"
    value = struct.pack(order + "HH", orientation, 0) if kind == 3 else struct.pack(order + "I", orientation)
    entry = struct.pack(order + "HHI", 0x112, kind, 1) + value
    return head + struct.pack(order + "I", 8) + struct.pack(order + "H", 1) + entry + bytes(4)


def jpeg(rgb, mode="RGB", **options):
    out = io.BytesIO()
    image = Image.fromarray(rgb)
    (image if mode == "RGB" else image.convert(mode)).save(out, "JPEG", quality=92, **options)
    return out.getvalue()


def with_marker(data, number, payload):
    return data[:2] + b"\xff" + bytes([number]) + struct.pack(">H", len(payload) + 2) + payload + data[2:]


def decoded(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


UPRIGHT = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2), 8: lambda a: np.rot90(a, 1),
}  # fmt: skip


def make_jpeg():
    rgb = picture(29, 21)
    plain = jpeg(rgb, subsampling=0)
    stored = decoded(plain)
    for orientation in range(1, 9):
        data = with_marker(plain, 0xE1, b"Exif\0\0" + exif(orientation, "<" if orientation % 2 else ">"))
        expect(f"orientation{orientation}.jpg", data, UPRIGHT[orientation](stored), 1)
    for name, block in {
        "zero": exif(0), "nine": exif(9), "cut": exif(6)[:12], "far": exif(6)[:4] + b"\xff\xff\xff\xf0" + exif(6)[8:],
        "order": b"XX" + exif(6)[2:], "empty": b"", "many": exif(6)[:8] + b"\xff\xff" + bytes(40),
    }.items():  # fmt: skip
        expect(f"exif_{name}.jpg", with_marker(plain, 0xE1, b"Exif\0\0" + block), stored, 1)
    expect("orientation_long.jpg", with_marker(plain, 0xE1, b"Exif\0\0" + exif(3, "<", 4)), UPRIGHT[3](stored), 1)
    for name, options in {
        "subsampled": {"subsampling": 2}, "halved": {"subsampling": 1}, "progressive": {"progressive": True},
        "restarts": {"restart_marker_rows": 1},
    }.items():  # fmt: skip
        data = jpeg(rgb, **options)
        expect(f"{name}.jpg", data, decoded(data), 2)
    data = jpeg(rgb, "L")
    expect("grey.jpg", data, decoded(data), 1)
    data = jpeg(rgb, "CMYK")
    expect("cmyk.jpg", data, decoded(data), 2)
    data = jpeg(rgb[:1, :1])
    expect("one_pixel.jpg", data, decoded(data), 2)
    expect("junk_behind.jpg", plain + b"<html>" * 50, stored, 1)
    expect("cut.jpg", plain[: len(plain) // 2], None)
    expect("cut_at_end.jpg", plain[:-10], None)
    expect("page.jpg", b"<!DOCTYPE html><html><body>not found</body></html>", None)
    expect("webp.jpg", b"RIFF\x24\0\0\0WEBPVP8 " + bytes(40), None)
    expect("empty.jpg", b"", None)
    frame = plain.index(b"\xff\xc0")
    for name, size in {"huge": (65500, 65500), "bomb": (13000, 13000), "flat": (0, 29)}.items():
        expect(f"{name}.jpg", plain[: frame + 5] + struct.pack(">HH", *size) + plain[frame + 9 :], None)
    for name, code in {"lossless": 0xC3, "arithmetic_lossless": 0xCB}.items():
        expect(f"{name}.jpg", plain[: frame + 1] + bytes([code]) + plain[frame + 2 :], None)
    expect("twelve_bits.jpg", plain[: frame + 4] + b"\x0c" + plain[frame + 5 :], None)
    data = jpeg(rgb[:16, :16], progressive=True)
    scan = data.rindex(b"\xff\xda")
    expect("many_scans.jpg", data[:-2] + data[scan:-2] * 1000 + data[-2:], None)


# ---- resampling --------------------------------------------------------------------------------------------------
def make_resizes():
    draw = np.random.default_rng(5)
    source = picture(61, 47).astype(int) + draw.integers(-30, 31, (47, 61, 3))
    source[20:23] = 255
    source[:, 40] = 0
    source = Image.fromarray(np.clip(source, 0, 255).astype(np.uint8))
    source.save(os.path.join(FOLDER, "source.png"), optimize=True)
    resizes = []
    for box, size in [
        ((0, 0, 61, 47), (61, 47)), ((0, 0, 61, 47), (32, 32)), ((0, 0, 61, 47), (8, 5)), ((0, 0, 61, 47), (1, 1)),
        ((0, 0, 61, 47), (90, 70)), ((0, 0, 61, 47), (61, 20)), ((0, 0, 61, 47), (20, 47)), ((0, 0, 61, 47), (120, 10)),
        ((7, 0, 54, 47), (16, 16)), ((3, 5, 50, 40), (24, 24)), ((10.25, 3.5, 40.75, 33.125), (17, 17)),
        ((30, 20, 34, 23), (12, 12)), ((0, 0, 1, 1), (4, 4)), ((12, 1, 33, 46), (31, 7)),
    ]:  # fmt: skip
        name = f"resize{len(resizes)}.png"
        source.resize(size, Image.Resampling.BICUBIC, box=box).save(os.path.join(FOLDER, name), optimize=True)
        resizes.append({"box": box, "size": size, "wanted": name})
    return resizes


os.makedirs(FOLDER, exist_ok=True)
for old in os.listdir(FOLDER):
    os.remove(os.path.join(FOLDER, old))
make_png()
make_jpeg()
for name, value in {"cases.json": cases, "resizes.json": make_resizes()}.items():
    save(name, (json.dumps(value, indent=1) + "\n").encode())
