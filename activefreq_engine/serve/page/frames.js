// The binary messages of the WebSocket; activefreq_engine/serve/frames.py describes and writes them.
const HEAD = 32;

export function decode(buffer) {
  const head = new DataView(buffer, 0, HEAD);
  const word = i => head.getUint32(4 + 4 * i, true);
  const frame = {
    kind: head.getUint8(0) === 1 ? 'mask' : 'uncertainty',
    whole: (head.getUint8(1) & 1) === 1,
    object: head.getUint16(2, true),
    seq: word(0),
    box: { x0: word(1), y0: word(2), x1: word(3), y1: word(4) },
    ms: head.getFloat32(24, true),
    width: head.getUint16(28, true),
    height: head.getUint16(30, true),
  };
  const body = new Uint8Array(buffer, HEAD);
  frame.data = frame.kind === 'mask' ? unpack(body, frame.box) : body;
  return frame;
}

// One byte a pixel, 0 or 1, from one bit a pixel with rows filled up to whole bytes.
function unpack(bits, { x0, y0, x1, y1 }) {
  const width = x1 - x0, height = y1 - y0, stride = (width + 7) >> 3;
  const out = new Uint8Array(width * height);
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0, row = y * stride; x < width; x++, i++) out[i] = (bits[row + (x >> 3)] >> (7 - (x & 7))) & 1;
  }
  return out;
}
