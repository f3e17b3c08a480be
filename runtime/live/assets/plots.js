"use strict";
// Small line plots on a canvas. A plot keeps nothing: it draws what it is given.

const Plots = (() => {
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  /** A round number at or above `value`, for the top of an axis. */
  function roundUp(value) {
    const power = 10 ** Math.floor(Math.log10(value));
    return power * [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((n) => n * power >= value * 0.999);
  }

  /** The canvas at the screen's own resolution, cleared; null while it has no size. */
  function prepare(canvas) {
    const scale = window.devicePixelRatio || 1;
    const width = canvas.clientWidth, height = canvas.clientHeight;
    if (!width || !height) return null;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, height);
    return { pen, width, height };
  }

  const label = (value) => (value % 1 ? value.toFixed(1) : String(value));

  /** Lines with their values; returns where the plot begins. */
  function grid({ pen, width, height }, top) {
    pen.font = "11px system-ui, sans-serif";
    const left = 10 + Math.max(...[0, 0.5, 1].map((share) => pen.measureText(label(top * share)).width));
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    for (const share of [0, 0.5, 1]) {
      const y = Math.round(6 + (height - 12) * (1 - share)) + 0.5;
      pen.strokeStyle = colour("--line");
      pen.lineWidth = 1;
      pen.beginPath(); pen.moveTo(left, y); pen.lineTo(width, y); pen.stroke();
      pen.fillStyle = colour("--mute");
      pen.fillText(label(top * share), left - 8, y);
    }
    return left;
  }

  function line({ pen, width, height }, values, top, left, name, fill) {
    const x = (i) => left + (width - left - 1) * (values.length > 1 ? i / (values.length - 1) : 1);
    const y = (v) => 6 + (height - 12) * (1 - Math.min(v / top, 1));
    pen.strokeStyle = colour(name);
    pen.lineWidth = 1.6;
    pen.lineJoin = "round";
    let run = [];
    const flush = () => {
      if (run.length > 1 || values.length === 1) {
        pen.beginPath();
        run.forEach(([px, py], i) => (i ? pen.lineTo(px, py) : pen.moveTo(px, py)));
        pen.stroke();
        if (fill) {
          pen.lineTo(run[run.length - 1][0], height - 6); pen.lineTo(run[0][0], height - 6);
          pen.globalAlpha = 0.12; pen.fillStyle = colour(name); pen.fill(); pen.globalAlpha = 1;
        }
      }
      run = [];
    };
    // A gap of more than three values is a gap in the line.
    let missing = 0;
    values.forEach((v, i) => {
      if (v === null || v === undefined) { missing += 1; return; }
      if (missing > 3) flush();
      missing = 0;
      run.push([x(i), y(v)]);
    });
    flush();
  }

  /** lines: [{values, name, fill}], name: a CSS variable. limit: a dashed line, or null. */
  function draw(canvas, lines, { least = 1, limit = null } = {}) {
    const area = prepare(canvas);
    if (!area) return;
    const all = lines.flatMap((l) => l.values).filter((v) => v !== null && v !== undefined);
    const top = roundUp(Math.max(least, (limit || 0) * 1.15, ...all.map((v) => v * 1.05)));
    const left = grid(area, top);
    for (const { values, name, fill } of lines) line(area, values, top, left, name, fill);
    if (limit !== null && limit <= top) {
      area.pen.setLineDash([4, 4]);
      line(area, [limit, limit], top, left, "--warn", false);
      area.pen.setLineDash([]);
    }
  }

  return { draw };
})();
