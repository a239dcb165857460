"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const make = (tag, parent, text = "", name = "") => {
    const node = document.createElement(tag);
    node.textContent = text; // text of a dataset is text: nothing here is ever parsed as HTML
    if (name) node.className = name;
    parent.append(node);
    return node;
  };
  const MOST_POINTS = 2000, WIDTH = 1000, HEIGHT = 100;
  const hidden = new Set(); // "plot/line"
  let episode, frame = 0, playing = false, speed = 1, begun = 0;
  let videos = [], addresses = [], drawn = [];

  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const short = (value) => !Number.isFinite(value) ? "–" : Math.abs(value) < 1e-9 ? "0" :
    Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6 ? value.toExponential(1) : String(+value.toPrecision(4));
  const taskAt = (number) => episode.tasks.filter(([begin]) => begin <= number).pop()[1];

  // The list

  const rows = data.episodes.map((each) => {
    const tasks = [...new Set(each.tasks.map(([, text]) => text))];
    const row = make("button", at("list"));
    make("b", row, `Episode ${each.index}`);
    make("span", row, `${(each.length / data.fps).toFixed(1)} s`);
    make("small", row, tasks.join(" · ")).title = tasks.join("\n");
    row.onclick = () => open(each);
    return { row, each, text: `${each.index} ${tasks.join(" ")}`.toLowerCase() };
  });
  const filter = () => {
    const wanted = at("search").value.trim().toLowerCase();
    let count = 0;
    for (const { row, each, text } of rows) {
      const shown = /^\d+$/.test(wanted) ? String(each.index).startsWith(wanted) : text.includes(wanted);
      row.hidden = !shown;
      row.style.display = shown ? "" : "none";
      count += shown;
    }
    at("found").textContent = count === rows.length ? `${count} episode${count === 1 ? "" : "s"}` : `${count} of ${rows.length} episodes`;
  };
  at("search").oninput = filter;

  // An episode

  function open(each) {
    pause();
    episode = each;
    addresses.forEach(URL.revokeObjectURL);
    addresses = [];
    for (const { row, each: other } of rows) other === each ? row.setAttribute("aria-current", "true") : row.removeAttribute("aria-current");
    rows.find(({ each: other }) => other === each).row.scrollIntoView({ block: "nearest" });
    at("episode").textContent = `Episode ${each.index}`;
    at("scrub").max = each.length - 1;
    at("films").replaceChildren();
    videos = each.films.map((film, place) => {
      const figure = make("figure", at("films"));
      make("figcaption", figure, data.cameras[place]);
      const video = make("video", figure);
      Object.assign(video, { muted: true, playsInline: true, preload: "auto", controls: false });
      video.onloadedmetadata = () => video.classList.toggle("small", video.videoWidth < 160);
      video.onerror = () => make("p", figure, "This browser can't play this video.");
      video.onclick = () => (playing ? pause() : play());
      const block = at(film);
      if (block) {
        addresses.push(URL.createObjectURL(new Blob([bytes(block.textContent)], { type: "video/mp4" })));
        video.src = addresses[addresses.length - 1];
      } else video.src = film;
      return video;
    });
    draw();
    seek(0);
    history.replaceState(null, "", `#${each.index}`);
  }

  // Plots

  function path(values, low, high) {
    const n = values.length, step = Math.max(1, Math.ceil(n / MOST_POINTS));
    let text = "", lifted = true;
    const point = (index) => {
      if (!Number.isFinite(values[index])) { lifted = true; return; }
      const x = ((index + 0.5) / n) * WIDTH, y = HEIGHT - ((values[index] - low) / (high - low)) * HEIGHT;
      text += `${lifted ? "M" : "L"}${x.toFixed(1)} ${y.toFixed(2)}`;
      lifted = false;
    };
    for (let first = 0; first < n; first += step) { // the extremes of each step, so that no peak is lost
      let least = first, most = first;
      for (let index = first; index < Math.min(n, first + step); index++) {
        if (values[index] < values[least]) least = index;
        if (values[index] > values[most]) most = index;
      }
      point(Math.min(least, most));
      if (least !== most) point(Math.max(least, most));
    }
    return text;
  }

  function draw() {
    const all = new Float32Array(bytes(episode.numbers).buffer), n = episode.length;
    at("plots").replaceChildren();
    drawn = data.plots.map((plot, number) => {
      const figure = make("figure", at("plots"));
      make("figcaption", figure, plot.title.replace(/^observation\./, ""));
      const above = make("div", figure, "", "range"), area = make("div", figure, "", "plot");
      const below = make("div", figure, "", "range"), legend = make("div", figure, "", "legend");
      const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      svg.setAttribute("viewBox", `0 -4 ${WIDTH} ${HEIGHT + 8}`);
      svg.setAttribute("preserveAspectRatio", "none");
      area.append(svg);
      const cursor = make("i", area);
      const lines = plot.lines.map(([label, column], place) => {
        const values = all.subarray(column * n, (column + 1) * n), name = `${number}/${place}`;
        const curve = document.createElementNS("http://www.w3.org/2000/svg", "path");
        curve.style.stroke = `var(--c${place})`;
        svg.append(curve);
        const button = make("button", legend, "", "line");
        button.style.setProperty("--colour", `var(--c${place})`);
        const line = { name, label, values, curve, button };
        button.onclick = () => { toggle([line], !hidden.has(name)); };
        return line;
      });
      const result = { plot, lines, cursor, above, below };
      const go = (event) => {
        const box = area.getBoundingClientRect();
        pause();
        seek(Math.floor(((event.clientX - box.left) / box.width) * n));
      };
      area.onpointerdown = (event) => { area.setPointerCapture(event.pointerId); go(event); };
      area.onpointermove = (event) => { if (event.buttons) go(event); };
      return result;
    });
    drawn.forEach(scale);
    const joints = drawn.filter(({ plot }) => plot.joint);
    at("toggles").replaceChildren();
    for (const label of joints.length > 1 ? new Set(joints.flatMap(({ lines }) => lines.map((line) => line.label))) : []) {
      const lines = joints.flatMap((each) => each.lines.filter((line) => line.label === label));
      const button = make("button", at("toggles"), `All ${label}`, "line");
      button.style.setProperty("--colour", lines[0].curve.style.stroke);
      const show = () => button.setAttribute("aria-pressed", lines.some((line) => !hidden.has(line.name)));
      button.onclick = () => { toggle(lines, lines.some((line) => !hidden.has(line.name))); show(); };
      show();
    }
  }

  function toggle(lines, hide) {
    for (const { name } of lines) hide ? hidden.add(name) : hidden.delete(name);
    drawn.forEach(scale);
    show();
  }

  function scale({ lines, above, below }) {
    let low = Infinity, high = -Infinity;
    for (const line of lines) {
      line.button.setAttribute("aria-pressed", !hidden.has(line.name));
      if (hidden.has(line.name)) continue;
      for (const value of line.values) if (Number.isFinite(value)) { low = Math.min(low, value); high = Math.max(high, value); }
    }
    above.textContent = low <= high ? short(high) : "no numbers";
    below.textContent = low <= high ? short(low) : " ";
    if (low === high) { low -= 1; high += 1; }
    for (const line of lines) line.curve.setAttribute("d", hidden.has(line.name) || low > high ? "" : path(line.values, low, high));
  }

  // Time

  function show() {
    const n = episode.length;
    at("scrub").value = frame;
    at("where").textContent = `${frame} / ${n - 1} · ${(frame / data.fps).toFixed(2)} s`;
    at("task").textContent = taskAt(frame);
    for (const { lines, cursor } of drawn) {
      cursor.style.left = `${((frame + 0.5) / n) * 100}%`;
      for (const { label, values, button } of lines) button.textContent = `${label} ${short(values[frame])}`;
    }
  }

  function seek(number) {
    frame = Math.max(0, Math.min(episode.length - 1, number));
    for (const video of videos) video.currentTime = (frame + 0.5) / data.fps; // the middle: no rounding leads to a neighbour
    begun = performance.now() - (frame / data.fps / speed) * 1000;
    show();
  }

  function play() {
    if (frame >= episode.length - 1) seek(0);
    playing = true;
    at("play").textContent = "Pause";
    begun = performance.now() - (frame / data.fps / speed) * 1000;
    for (const video of videos) {
      video.playbackRate = speed;
      video.play().catch(() => {}); // interrupted by a pause, or not playable: `onerror` tells
    }
    requestAnimationFrame(tick);
  }

  function pause() {
    if (!playing) return;
    playing = false;
    at("play").textContent = "Play";
    videos.forEach((video) => video.pause());
    seek(frame);
  }

  function tick(now) {
    if (!playing) return;
    const master = videos.find((video) => !video.error), time = master ? master.currentTime : ((now - begun) / 1000) * speed;
    frame = Math.max(0, Math.min(episode.length - 1, Math.floor(time * data.fps + 1e-3)));
    for (const video of videos) {
      if (video !== master && !video.seeking && Math.abs(video.currentTime - time) > Math.max(1.5 / data.fps, 0.08)) video.currentTime = time;
    }
    show();
    if (master ? master.ended : frame >= episode.length - 1) { pause(); return; }
    requestAnimationFrame(tick);
  }

  at("play").onclick = () => (playing ? pause() : play());
  const step = (count) => { pause(); seek(frame + count); };
  at("back").onclick = () => step(-1);
  at("forth").onclick = () => step(1);
  at("scrub").oninput = () => { const wanted = +at("scrub").value; pause(); seek(wanted); };
  at("speed").onchange = () => {
    speed = +at("speed").value;
    begun = performance.now() - (frame / data.fps / speed) * 1000;
    videos.forEach((video) => { video.playbackRate = speed; });
  };
  document.onkeydown = (event) => {
    if (event.target.matches("input[type=search], select") || event.ctrlKey || event.metaKey || event.altKey) return;
    const shown = rows.filter(({ row }) => !row.hidden), place = shown.findIndex(({ each }) => each === episode);
    const moves = {
      " ": () => (playing ? pause() : play()),
      ArrowLeft: () => step(event.shiftKey ? -10 : -1),
      ArrowRight: () => step(event.shiftKey ? 10 : 1),
      ArrowUp: () => shown[place - 1] && open(shown[place - 1].each),
      ArrowDown: () => shown[place + 1] && open(shown[place + 1].each),
    };
    if (event.key === " " && event.target.matches("button")) return; // the button's own
    if (moves[event.key]) { event.preventDefault(); moves[event.key](); }
  };

  filter();
  open(data.episodes.find((each) => `#${each.index}` === location.hash) || data.episodes[0]);
})();
