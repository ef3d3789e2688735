"use strict";
// Plays clips on a canvas. Everything it shows comes from the JSON beside it and goes to the page as text or pixels.

const CIVIDIS = [[0, 34, 78], [65, 77, 107], [124, 123, 120], [188, 175, 111], [254, 232, 56]];
const ATTACKED = "#D55E00", FRAMES_A_SECOND = 15;
const SCALE = `linear-gradient(to right, ${CIVIDIS.map((c) => `rgb(${c.join(",")})`).join(", ")})`;

function ramp(share) {
  const at = Math.min(Math.max(share, 0), 1) * (CIVIDIS.length - 1), low = Math.min(Math.floor(at), CIVIDIS.length - 2);
  const mixed = CIVIDIS[low].map((c, n) => Math.round(c + (CIVIDIS[low + 1][n] - c) * (at - low)));
  return `rgb(${mixed.join(",")})`;
}

function make(tag, parent, text) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

function shade(name) {  // of the page, which may be dark or on paper
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

class Player {
  constructor(root) {
    this.data = JSON.parse(document.getElementById(root.dataset.source).textContent);
    this.canvas = root.querySelector("canvas");
    this.frame = 0; this.turn = 0.5; this.query = null; this.playing = false; this.last = 0;
    this.controls(root.querySelector(".controls"));
    this.note = root.querySelector(".note");
    this.key = make("div", root);
    this.key.className = "key";
    this.canvas.after(this.key);
    this.choose(0);
    this.canvas.addEventListener("pointerdown", (event) => this.grab(event));
    this.canvas.addEventListener("keydown", (event) => this.steer(event));
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    for (const medium of ["print", "(prefers-color-scheme: dark)"]) {
      matchMedia(medium).addEventListener("change", () => this.draw());
    }
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) {
      new IntersectionObserver((seen) => this.play(seen[0].isIntersecting)).observe(this.canvas);
    }
  }

  controls(box) {
    const label = (text) => make("label", box, text + " ");
    this.clips = make("select", label("clip"));
    this.data.clips.forEach((clip, n) => { make("option", this.clips, clip.title).value = n; });
    this.clips.onchange = () => this.choose(Number(this.clips.value));
    this.overlays = make("select", label("shown"));
    this.overlays.onchange = () => { this.query = null; this.draw(); };
    this.button = make("button", box, "play");
    this.button.type = "button";
    this.button.onclick = () => this.play(!this.playing);
    const seek = label("frame");
    seek.className = "seek";
    this.slider = make("input", seek);
    Object.assign(this.slider, { type: "range", min: 0, value: 0 });
    this.slider.oninput = () => { this.play(false); this.frame = Number(this.slider.value); this.draw(); };
    this.enlargedLabel = label("displacement ×");
    this.enlarged = make("input", this.enlargedLabel);
    Object.assign(this.enlarged, { type: "number", min: 1, step: 1 });
    this.enlarged.oninput = () => this.draw();
  }

  choose(number) {
    this.clip = this.data.clips[number];
    this.frame = 0; this.query = null;
    this.slider.max = this.clip.joints.length - 1;
    this.size(this.clip);
    this.clip.neighbours.forEach((near) => this.size(near));
    const before = this.overlays.options.length ? this.overlays.value : null;
    this.overlays.replaceChildren();
    make("option", this.overlays, "the clip alone").value = "";
    this.clip.maps.forEach((map, n) => { make("option", this.overlays, `attention: ${map.name}`).value = `map ${n}`; });
    this.clip.twins.forEach((twin, n) => { make("option", this.overlays, `attacked: ${twin.name}`).value = `twin ${n}`; });
    const values = [...this.overlays.options].map((option) => option.value);
    const first = Math.max(this.clip.maps.findIndex((map) => map.over === "joints"), 0) + 1;
    this.overlays.value = values.includes(before) ? before : values[Math.min(first, values.length - 1)];
    this.draw();
  }

  size(clip) {  // centre and half height of what moves, from any side
    if (clip.reach) return;
    const low = [Infinity, Infinity, Infinity], high = low.map((x) => -x);
    for (const frame of clip.joints) for (const body of frame) for (const joint of body) {
      joint.forEach((x, axis) => { low[axis] = Math.min(low[axis], x); high[axis] = Math.max(high[axis], x); });
    }
    clip.middle = low.map((x, axis) => (x + high[axis]) / 2);
    const wide = Math.hypot(...low.map((x, axis) => (axis === this.data.up ? 0 : high[axis] - x)));
    clip.reach = Math.max(high[this.data.up] - low[this.data.up], wide, 1) / 2;
  }

  play(on) {
    if (on === this.playing) return;
    this.playing = on;
    this.button.textContent = on ? "pause" : "play";
    if (on) requestAnimationFrame((now) => { this.last = now; this.step(now); });
  }

  step(now) {
    if (!this.playing) return;
    if (now - this.last >= 1000 / FRAMES_A_SECOND) {
      this.last = now;
      this.frame = (this.frame + 1) % this.clip.joints.length;
      this.draw();
    }
    requestAnimationFrame((later) => this.step(later));
  }

  grab(event) {  // a tap on a joint shows where it looks, a drag turns the figure
    const box = this.canvas.getBoundingClientRect(), from = event.clientX, turn = this.turn;
    const at = [event.clientX - box.left, event.clientY - box.top];
    const move = (moved) => { this.turn = turn + (moved.clientX - from) / 100; this.draw(); };
    const end = (ended) => {  // a cancelled touch has become the page's scrolling
      removeEventListener("pointermove", move);
      for (const how of ["pointerup", "pointercancel"]) removeEventListener(how, end);
      if (ended.type === "pointerup" && Math.abs(ended.clientX - from) < 4) {
        const near = this.spots.map((s) => [Math.hypot(s.x - at[0], s.y - at[1]), s.joint]).sort((a, b) => a[0] - b[0])[0];
        this.query = near && near[0] < 14 && near[1] !== this.query ? near[1] : null;
        this.draw();
      }
    };
    addEventListener("pointermove", move);
    for (const how of ["pointerup", "pointercancel"]) addEventListener(how, end);
  }

  steer(event) {  // the arrow keys turn the figure, too
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!way) return;
    event.preventDefault();
    this.turn += way * 0.1;
    this.draw();
  }

  project(clip, joint, area) {
    const up = this.data.up, [a, b] = [0, 1, 2].filter((axis) => axis !== up);
    const centred = joint.map((x, axis) => (x - clip.middle[axis]) / clip.reach);
    const side = centred[a] * Math.cos(this.turn) - centred[b] * Math.sin(this.turn);
    return [area.x + area.size * side * 0.46, area.y - this.data.upward * area.size * centred[up] * 0.46];
  }

  attention(body) {  // what each joint or frame gets: from one joint, or from all on average
    const [kind, number] = this.overlays.value.split(" ");
    if (kind !== "map") return null;
    const map = this.clip.maps[Number(number)], values = map.values[Math.min(body, map.values.length - 1)];
    const one = map.over === "joints" && this.query !== null;
    const got = values[0].map((_, v) => (one ? Math.abs(values[this.query][v])
      : values.reduce((sum, row) => sum + Math.abs(row[v]), 0) / values.length));
    const most = Math.max(...got, 1e-12);
    return { over: map.over, shares: got.map((x) => x / most) };
  }

  draw() {
    const box = this.canvas.getBoundingClientRect(), density = devicePixelRatio || 1;
    if (!box.width) return;
    this.canvas.width = box.width * density; this.canvas.height = box.height * density;
    const pen = this.canvas.getContext("2d");
    pen.scale(density, density);
    this.colours = Object.fromEntries(["ink", "bone", "near", "faint", "quiet"].map((name) => [name, shade(name)]));
    pen.fillStyle = this.colours.faint; pen.fillRect(0, 0, box.width, box.height);
    this.slider.value = this.frame;
    this.canvas.dataset.frame = this.frame;
    const near = this.clip.neighbours, column = near.length ? Math.min(box.width * 0.25, 150) : 0;
    const size = Math.min(box.width - column, box.height - 40);
    this.main(pen, { x: (box.width - column) / 2, y: (box.height - 30) / 2, size }, box.width - column, box.height);
    near.forEach((other, n) => {
      const height = box.height / near.length;
      const area = { x: box.width - column / 2, y: height * (n + 0.5) - 18, size: Math.min(column, height - 40) };
      const frame = other.joints[Math.floor(this.frame / this.clip.joints.length * other.joints.length)];
      frame.forEach((body) => this.bones(pen, body.map((j) => this.project(other, j, area)), this.colours.near, 1.6));
      pen.fillStyle = this.colours.quiet; pen.font = "12px system-ui, sans-serif"; pen.textAlign = "center";
      other.title.split(", ").reverse().forEach((line, up) => pen.fillText(line, area.x, height * (n + 1) - 6 - 14 * up, column));
    });
    this.said();
  }

  main(pen, area, width, height) {
    const [kind, number] = this.overlays.value.split(" "), twin = kind === "twin" ? this.clip.twins[Number(number)] : null;
    this.enlargedLabel.hidden = !twin;
    if (twin && this.enlarged.dataset.twin !== this.overlays.value) {
      this.enlarged.value = twin.enlarge; this.enlarged.dataset.twin = this.overlays.value;
    }
    this.spots = [];
    this.clip.joints[this.frame].forEach((body, m) => {
      const spots = body.map((joint) => this.project(this.clip, joint, area));
      const got = this.attention(m), shares = got && got.over === "joints" ? got.shares : null;
      this.bones(pen, spots, this.colours.bone, 3);
      if (twin) this.shifted(pen, twin, body, m, spots, area);
      spots.forEach(([x, y], joint) => {
        this.spots.push({ x, y, joint });
        const share = shares ? shares[joint] : 0;
        pen.beginPath(); pen.arc(x, y, shares ? 4 + 8 * share : 3.5, 0, 7);
        pen.fillStyle = shares ? ramp(share) : this.colours.ink; pen.fill();
        pen.strokeStyle = joint === this.query ? ATTACKED : shares ? this.colours.bone : this.colours.faint;
        pen.lineWidth = joint === this.query ? 3 : 1; pen.stroke();
      });
      if (got && got.over === "frames" && m === 0) this.strip(pen, got.shares, width, height);
    });
  }

  shifted(pen, twin, body, m, spots, area) {
    const factor = twin.unit * (Number(this.enlarged.value) || 1), moves = twin.shift[this.frame][m];
    const moved = body.map((joint, v) => this.project(this.clip, joint.map((x, axis) => x + moves[v][axis] * factor), area));
    this.bones(pen, moved, ATTACKED, 1.5);
    pen.strokeStyle = ATTACKED; pen.lineWidth = 1;
    moved.forEach((to, v) => { pen.beginPath(); pen.moveTo(...spots[v]); pen.lineTo(...to); pen.stroke(); });
  }

  bones(pen, spots, colour, width) {
    pen.strokeStyle = colour; pen.lineWidth = width; pen.lineCap = "round";
    for (const [child, parent] of this.data.bones) {
      pen.beginPath(); pen.moveTo(...spots[child]); pen.lineTo(...spots[parent]); pen.stroke();
    }
  }

  strip(pen, shares, width, height) {
    const each = (width - 20) / shares.length;
    shares.forEach((share, n) => {
      pen.fillStyle = ramp(share);
      pen.fillRect(10 + n * each, height - 6 - 20 * share, Math.max(each - 1, 1), 20 * share + 2);
    });
    pen.strokeStyle = ATTACKED; pen.lineWidth = 2;
    pen.strokeRect(10 + (this.frame + 0.5) / this.clip.joints.length * (width - 20) - 1.5, height - 28, 3, 26);
  }

  keys(kind) {  // what the colours mean
    const meanings = [];
    if (kind === "map") meanings.push([SCALE, "", "attention received: none to most"]);
    if (kind === "twin") meanings.push([ATTACKED, "stroke", `attacked, displacement × ${this.enlarged.value}`]);
    if (this.clip.neighbours.length) meanings.push([this.colours.near, "stroke", "the nearest training clips"]);
    const told = JSON.stringify(meanings);
    if (told === this.told) return;  // most frames
    this.told = told;
    this.key.replaceChildren();
    for (const [colour, name, meaning] of meanings) {
      const one = make("span", this.key), swatch = make("i", one);
      swatch.className = name; swatch.style.background = colour;
      one.append(meaning);
    }
  }

  said() {
    this.keys(this.overlays.value.split(" ")[0]);
    const looked = this.query === null ? "" : ` From ${this.data.joints[this.query]}.`;
    this.note.textContent = `Frame ${this.frame + 1} of ${this.clip.joints.length}. ${this.clip.note}${looked}`;
  }
}

document.querySelectorAll(".player").forEach((root) => { root.player = new Player(root); });
