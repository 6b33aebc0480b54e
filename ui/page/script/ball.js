// The picture of the replies to the last message (post 7725): in coordinates in which the prior is the standard normal, the
// possible replies fill the unit ball, and each reply is an ellipse with centre m and axes s. The point can be dragged; the
// server decodes the reply there. A checkpoint without a Gaussian latent has no picture.
(() => {
  const xl = window.xianliao, { element } = xl, MAX = xl.given.ball_edge;
  const UNIT = 64, EDGE = 3, MOST = 9, WAIT = 300, MIN_OVERLAP = 0.3, STEP = 0.1, SHORT = 6, HALF = EDGE * UNIT + 4;
  // UNIT: length of a standard deviation in the drawing; EDGE: standard deviations in each direction; MOST: replies in the
  // picture; WAIT: milliseconds after the last move; MAX: largest coordinate that the server takes
  const NAME = "http://www.w3.org/2000/svg";
  const draw = (tag, attributes = {}, ...children) => {
    const part = document.createElementNS(NAME, tag);
    for (const [name, value] of Object.entries(attributes)) part.setAttribute(name, value);
    part.append(...children);
    return part;
  };
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const round = (value) => Number(value.toFixed(1));
  const clamp = (value, edge = EDGE) => Math.min(edge, Math.max(-edge, value));

  // The KL of a reply in nats, dimension by dimension: what pulls its centre in, and what keeps it from being a point or a blot.
  const centrePull = ({ m }) => m.map((x) => x * x / 2);
  const volumePull = ({ s }) => s.map((x) => (x * x - Math.log(x * x) - 1) / 2);
  // The Bhattacharyya coefficient, from 0 (apart) to 1 (equal).
  const overlap = (a, b) => Math.exp(-sum(a.m.map((_, d) => {
    const mean = (a.s[d] ** 2 + b.s[d] ** 2) / 2;
    return (a.m[d] - b.m[d]) ** 2 / (8 * mean) + Math.log(mean / (a.s[d] * b.s[d])) / 2;
  })));
  // The two dimensions with the largest mean KL.
  const axesOf = (replies) => {
    const kl = replies[0].m.map((_, d) => sum(replies.map((reply) => centrePull(reply)[d] + volumePull(reply)[d])));
    return kl.map((_, d) => d).sort((a, b) => kl[b] - kl[a] || a - b).slice(0, 2);
  };
  // The point of the ball at two coordinates: on a reply it has this reply's mean in the other dimensions as well, in the middle
  // zeros, and elsewhere their average with weights of the inverse squared distance.
  const pointAt = (replies, [first, second], x, y) => {
    const known = [{ m: replies[0].m.map(() => 0) }, ...replies];
    const weights = known.map(({ m }) => 1 / ((m[first] - x) ** 2 + (m[second] - y) ** 2 + 1e-6)), total = sum(weights);
    return replies[0].m.map((_, d) => {
      const mean = sum(known.map(({ m }, at) => m[d] * weights[at])) / total;
      return Number(clamp(d === first ? x : d === second ? y : mean, MAX).toFixed(3));
    });
  };

  // open: the message whose picture is open; latest: the one whose picture was open last; known: distributions by text; asked: texts on their way; at: the point on the
  // drawing; sent: {at, point} on its way; reply: {at, message} that was decoded last
  let open = "", latest = "", known = new Map(), asked = [], isFailed = false, at = [0, 0], sent = null, reply = null, timer = 0, axes = [];
  const box = element("div", { class: "x-ball" });
  const keyOf = (index) => {
    const { id, persona, messages } = xl.chat.current();
    return JSON.stringify([id, persona, messages.slice(0, index).map(({ role, text }) => [role, text]), messages[index].model]);
  };
  const lastIndex = () => xl.chat.current().messages.length - 1;
  const isOpen = () => open && lastIndex() >= 0 && xl.chat.current().messages[lastIndex()].role === "assistant" && keyOf(lastIndex()) === open;
  const texts = () => [...new Set(xl.tree.texts(lastIndex()))].filter((text) => text && text.length < 2000).slice(-MOST);
  const shown = () => texts().filter((text) => known.has(text)).map((text) => ({ text, ...known.get(text) }));

  const ellipses = (replies, [first, second]) => {
    let low = -Infinity;
    const order = replies.map((_, index) => index).sort((a, b) => replies[b].m[second] - replies[a].m[second]);
    const parts = [];
    replies.forEach((a, one) => replies.slice(one + 1).forEach((b) => {
      const share = overlap(a, b);
      if (share > MIN_OVERLAP) parts.push(draw("line", { class: "x-edge", x1: UNIT * a.m[first], y1: -UNIT * a.m[second], x2: UNIT * b.m[first], y2: -UNIT * b.m[second], "stroke-width": 4 * share }));
    }));
    for (const index of order) {
      const { m, s, text } = replies[index], x = UNIT * clamp(m[first]), y = -UNIT * clamp(m[second]);
      const line = Math.max(y + 5, low + 16), isRight = x > UNIT;  // names do not cover each other
      low = line;
      parts.push(draw("g", { class: "x-ellipse", style: `--n: ${index}`, role: "img", "aria-label": `${index + 1}: ${xl.visible(text)}` },
        draw("ellipse", { cx: x, cy: y, rx: UNIT * s[first], ry: UNIT * s[second] }),
        draw("circle", { cx: x, cy: y, r: 2.5 }),
        draw("text", { x: x + (isRight ? -6 : 6), y: line, "text-anchor": isRight ? "end" : "start" }, `${index + 1} ${xl.visible([...text].slice(0, SHORT).join(""))}${[...text].length > SHORT ? "…" : ""}`)));
    }
    return parts;
  };

  // Three small pictures: an autoencoder, a trained latent, a collapsed one.
  const ROWS = {
    points: [[-2.4, 1.5, 0.12], [-1, 2.5, 0.12], [0.4, 1.2, 0.12], [2.3, 2, 0.12], [-2.7, -0.6, 0.12], [-0.7, -0.4, 0.12], [1.9, -0.3, 0.12], [-1.5, -2.3, 0.12], [0.6, -1.9, 0.12], [2.6, -2.1, 0.12]],
    trained: [[-0.7, 0.6, 0.6, 0.4], [0.7, 0.7, 0.5, 0.6], [-0.8, -0.5, 0.5, 0.5], [0.1, 0, 0.5, 0.5], [0.8, -0.5, 0.5, 0.4], [0, -1, 0.6, 0.4], [0, 1.3, 0.6, 0.4]],
    collapsed: [[0, 0, 1], [0.05, 0.03, 1.03], [-0.05, -0.02, 0.97], [0.03, -0.05, 1.01]],
  };
  const thumbnails = () => element("div", { class: "x-ball-kinds" }, ...Object.entries(ROWS).map(([name, rows]) => element("figure", {},
    draw("svg", { viewBox: "-66 -66 132 132", "aria-hidden": "true" }, draw("circle", { class: "x-sigma", r: 20 }), draw("circle", { class: "x-sigma", r: 40 }),
      ...rows.map(([x, y, rx, ry = rx], n) => draw("g", { class: "x-ellipse", style: `--n: ${n % 8}` }, draw("ellipse", { cx: 20 * x, cy: -20 * y, rx: 20 * rx, ry: 20 * ry })))),
    element("figcaption", {}, xl.say(`ball_${name}`)))));

  const line = element("p", { class: "x-ball-reply", "aria-live": "polite" }), use = element("button", { type: "button", class: "x-plain", "data-changes": true, hidden: true }, xl.say("ball_use"));
  const dot = draw("g", { class: "x-dot", tabindex: "0", role: "slider", "aria-label": xl.say("ball_dot"), "aria-valuemin": -EDGE, "aria-valuemax": EDGE },
    draw("circle", { class: "x-touch", r: 24 }), draw("circle", { r: 7 }));
  const disc = draw("svg", { viewBox: `${-HALF} ${-HALF} ${2 * HALF} ${2 * HALF}`, role: "group" });
  const showPoint = () => {
    const [x, y] = at.map((value) => round(value)), isNew = reply && reply.at === String(at);
    dot.setAttribute("transform", `translate(${UNIT * at[0]} ${-UNIT * at[1]})`);
    dot.setAttribute("aria-valuenow", x);
    const words = isNew ? xl.say("ball_reply", { x, y, text: xl.visible(reply.message.text) }) : `${xl.say("ball_at", { x, y })}…`;
    dot.setAttribute("aria-valuetext", words);
    line.textContent = isNew || sent || timer ? words : "";
    use.hidden = !isNew || texts().includes(reply.message.text);
  };
  const ask = () => {
    timer = 0;
    const replies = isOpen() ? shown() : [];
    if (sent || !replies.length) return;
    sent = { at: String(at), point: pointAt(replies, axesOf(replies), ...at) };
    xl.trigger("release", {});
  };
  const move = (x, y) => {
    if (!shown().length) return;
    at = [clamp(x), clamp(y)].map((value) => Number(value.toFixed(2)));
    clearTimeout(timer);
    timer = setTimeout(ask, WAIT);
    showPoint();
  };
  const follow = (event) => {
    const { left, top, width } = disc.getBoundingClientRect(), scale = 2 * HALF / width;
    move(((event.clientX - left) * scale - HALF) / UNIT, (HALF - (event.clientY - top) * scale) / UNIT);
  };
  dot.addEventListener("pointerdown", (event) => { dot.setPointerCapture(event.pointerId); event.preventDefault(); dot.focus(); });
  dot.addEventListener("touchstart", (event) => event.preventDefault(), { passive: false });  // a finger on it does not scroll
  dot.addEventListener("pointermove", (event) => { if (dot.hasPointerCapture(event.pointerId)) follow(event); });
  disc.addEventListener("click", (event) => { if (!dot.contains(event.target)) follow(event); });
  dot.addEventListener("keydown", (event) => {
    const step = event.shiftKey ? 5 * STEP : STEP;
    const [x, y] = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, step], ArrowDown: [0, -step], Home: [-at[0], -at[1]] }[event.key] || [];
    if (x === undefined) return;
    event.preventDefault();
    move(at[0] + x, at[1] + y);
  });
  use.addEventListener("click", () => {
    const index = lastIndex(), { messages } = xl.chat.current(), { message } = reply;
    xl.tree.add(xl.chat.current(), index, [message]);
    xl.chat.put([...messages.slice(0, index), message]);
  });

  const fill = () => {
    const replies = shown(), unknown = texts().filter((text) => !known.has(text));
    disc.setAttribute("aria-label", xl.say("ball_label", { count: replies.length }));
    disc.replaceChildren(...[1, 2].map((r) => draw("circle", { class: "x-sigma", r: UNIT * r })));
    const list = element("ol", {});
    if (replies.length) {
      if (String(axes) !== String(axes = axesOf(replies))) { at = [0, 0]; reply = null; }  // the drawing shows other dimensions
      disc.append(...ellipses(replies, axes), dot);
      list.append(...replies.map((one, index) => element("li", { style: `--n: ${index}` }, element("b", {}, index + 1), element("span", { lang: "zh-CN", dir: "auto" }, xl.visible(one.text)),
        element("small", {}, xl.say("ball_pull", { centre: sum(centrePull(one)).toFixed(1), volume: sum(volumePull(one)).toFixed(1) })))));
      replies.forEach((a, one) => replies.slice(one + 1).forEach((b, more) => {
        if (overlap(a, b) > MIN_OVERLAP) list.append(element("li", { class: "x-overlap" }, element("small", {}, xl.say("ball_overlap", { a: one + 1, b: one + more + 2, share: Math.round(100 * overlap(a, b)) }))));
      }));
    }
    const state = isFailed ? xl.say("ball_failed") : unknown.length ? xl.say("ball_wait") : "";
    box.replaceChildren(element("p", {}, xl.say("ball_note")), disc, element("p", { role: "status" }, state), line, use, list, thumbnails());
    showPoint();
    if (unknown.length && !asked.length && !isFailed) {
      asked = unknown;
      xl.trigger("expand", {});
    }
  };

  xl.ball = {
    overlap,
    reply: () => reply && reply.message,
    shows: (message) => xl.given.balls.includes(message.model),
    isOpen: () => Boolean(isOpen()),
    toggle: () => {
      const next = keyOf(lastIndex());
      if (isOpen()) open = "";
      else {
        if (next !== latest) { known = new Map(); asked = []; at = [0, 0]; reply = sent = null; }
        open = latest = next;
        isFailed = false;
      }
      xl.chat.redraw();
      if (isOpen()) box.scrollIntoView({ block: "nearest" });
    },
    // Returns the picture if it is open for the last reply of the conversation; versions that are new in it are read.
    part: (isLast) => {
      if (!isLast || !isOpen()) return null;
      setTimeout(fill, 0);
      return box;
    },
    // The inputs and results of the server's events.
    asked: () => [xl.chat.current(), asked],
    // Null after a failure.
    encoded: (values) => {
      const isMine = Array.isArray(values) && values.length === asked.length && values.every(({ text }, index) => text === asked[index]);
      if (isMine) for (const { text, m, s } of values) known.set(text, { m, s });
      else if (!values) isFailed = true;
      asked = [];
      if (isOpen()) fill();
    },
    dropped: () => [xl.chat.current(), sent ? sent.point : []],
    // After a failure the point waits for the next move; a reply to an earlier point is not shown.
    decoded: (message) => {
      const answered = sent || {};
      sent = null;
      if (message && String(message.point) === String(answered.point)) reply = { at: answered.at, message };
      if (message && isOpen() && !timer && (!reply || reply.at !== String(at))) ask();
      if (isOpen()) showPoint();
    },
  };
})();
