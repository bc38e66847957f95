// One object's mask: the pixels of a box that holds all of it.
export class Mask {
  constructor() { this.clear(); }

  clear() { this.x0 = this.y0 = this.x1 = this.y1 = 0; this.data = new Uint8Array(0); this.area = 0; }

  get empty() { return this.x1 === this.x0; }

  // Replace what lies in a box.
  patch({ x0, y0, x1, y1 }, data) {
    if (x1 <= x0) return;
    this.grow(x0, y0, x1, y1);
    const width = this.x1 - this.x0, w = x1 - x0;
    for (let y = y0, i = 0; y < y1; y++) {
      const row = (y - this.y0) * width + x0 - this.x0;
      for (let x = 0; x < w; x++, i++) {
        this.area += data[i] - this.data[row + x];
        this.data[row + x] = data[i];
      }
    }
  }

  grow(x0, y0, x1, y1) {
    if (!this.empty) {
      if (x0 >= this.x0 && y0 >= this.y0 && x1 <= this.x1 && y1 <= this.y1) return;
      x0 = Math.min(x0, this.x0); y0 = Math.min(y0, this.y0); x1 = Math.max(x1, this.x1); y1 = Math.max(y1, this.y1);
    }
    const data = new Uint8Array((x1 - x0) * (y1 - y0));
    for (let y = this.y0; y < this.y1; y++) {
      const from = (y - this.y0) * (this.x1 - this.x0);
      data.set(this.data.subarray(from, from + this.x1 - this.x0), (y - y0) * (x1 - x0) + this.x0 - x0);
    }
    Object.assign(this, { x0, y0, x1, y1, data });
  }

  // Paint what lies in a box; transparent where the mask is not.
  paint(context, box, rgb) {
    const x0 = Math.max(box.x0, this.x0), y0 = Math.max(box.y0, this.y0);
    const x1 = Math.min(box.x1, this.x1), y1 = Math.min(box.y1, this.y1);
    if (x1 <= x0 || y1 <= y0) return;
    const image = context.createImageData(x1 - x0, y1 - y0);
    const pixels = new Uint32Array(image.data.buffer);
    const colour = (255 << 24 | rgb[2] << 16 | rgb[1] << 8 | rgb[0]) >>> 0;  // the machine's byte order is little-endian
    for (let y = y0, i = 0; y < y1; y++) {
      const row = (y - this.y0) * (this.x1 - this.x0) - this.x0;
      for (let x = x0; x < x1; x++, i++) if (this.data[row + x]) pixels[i] = colour;
    }
    context.putImageData(image, x0, y0);
  }

  // The pixels' edges between inside and outside, as an SVG path in image pixels.
  outline() {
    if (this.empty) return '';
    const width = this.x1 - this.x0, height = this.y1 - this.y0, data = this.data;
    const open = new Int32Array(width + 1).fill(-1), path = [];  // open[x]: where the vertical edge at x began
    const at = (x, y) => x >= 0 && x < width && y >= 0 && y < height ? data[y * width + x] : 0;
    for (let y = 0; y <= height; y++) {
      let begun = -1;
      for (let x = 0; x <= width; x++) {
        const here = at(x, y), across = here !== at(x, y - 1), along = here !== at(x - 1, y);
        if (across && begun < 0) begun = x;
        if (!across && begun >= 0) { path.push(`M${this.x0 + begun} ${this.y0 + y}H${this.x0 + x}`); begun = -1; }
        if (along && open[x] < 0) open[x] = y;
        if (!along && open[x] >= 0) { path.push(`M${this.x0 + x} ${this.y0 + open[x]}V${this.y0 + y}`); open[x] = -1; }
      }
    }
    return path.join('');
  }
}
