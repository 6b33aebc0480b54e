// A curve of a run: a line over the steps, its range at the left, its last value at the right.
(() => {
  const xl = window.xianliao, { element } = xl, SVG = "http://www.w3.org/2000/svg";
  const short = (value) => value.toFixed(value < 10 ? 2 : 1);
  const svg = (tag, attributes) => {
    const shape = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) shape.setAttribute(name, value);
    return shape;
  };
  xl.curve = (name, points) => {
    const xs = points.map(([x]) => x), ys = points.map(([, y]) => y);
    const [left, right, low, high] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    const position = ([x, y]) => [right > left ? 100 * (x - left) / (right - left) : 50, high > low ? 96 - 92 * (y - low) / (high - low) : 50];
    const label = xl.say("studio_curve", { name, first: short(ys[0]), last: short(ys[ys.length - 1]), step: right });
    const plot = svg("svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none", role: "img", "aria-label": label });
    plot.append(svg("polyline", { points: points.map((point) => position(point).join(",")).join(" ") }));
    if (points.length < 40) for (const point of points) plot.append(svg("path", { class: "x-dot", d: `M${position(point).join(" ")}h0` }));
    return element("figure", { class: "x-curve" },
      element("figcaption", {}, element("b", {}, name), ` ${short(ys[ys.length - 1])} `, element("span", {}, xl.say("studio_lower"))),
      element("div", { class: "x-plot" },
        element("div", { class: "x-range", "aria-hidden": "true" }, element("span", {}, short(high)), element("span", {}, low < high ? short(low) : "")), plot,
        element("div", { class: "x-steps", "aria-hidden": "true" }, element("span", {}, String(left)), element("span", {}, right > left ? String(right) : ""))));
  };
})();
