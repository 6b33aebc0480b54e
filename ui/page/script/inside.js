// How a reply was made: the line about it, and one bar per token; choosing a bar lists its candidates. At first those of the
// least certain token are listed.
(() => {
  const xl = window.xianliao, { element } = xl;
  const percent = (p) => (p < 0.001 ? "<0.1%" : p < 0.1 ? `${(100 * p).toFixed(1)}%` : `${Math.round(100 * p)}%`);
  const shown = (token) => token || xl.say("end_mark");
  const bodyOf = (index) => document.querySelector(`#chat .x-turn[data-index="${index}"] .x-body`);

  const candidates = (step, number) => element("div", { class: "x-candidates" },
    element("p", {}, xl.say("inside_count", { at: number + 1, count: step.count })),
    element("ol", {}, ...step.candidates.map(([token, p], at) => element(
      "li", { class: at === step.chosen ? "chosen" : "", style: `--p: ${p}` },
      element("span", { class: "x-name" }, shown(token)), element("span", { class: "x-share" }),
      element("span", {}, percent(p)), at === step.chosen ? element("b", {}, xl.say("chosen")) : null,
    ))),
    element("p", {}, xl.say("inside_end", Object.fromEntries(["end", "kept", "floor"].map((name, n) => [name, percent(step.end[n])])))));

  xl.inside = {
    toggle: (index) => {
      const body = bodyOf(index), open = body.querySelector(".x-inside"), { seed, model } = xl.chat.current().messages[index];
      if (open) { open.remove(); return; }
      const { line } = xl.tree.node(index) || {};
      const look = element("button", { type: "button", class: "x-plain", onclick: () => xl.trigger("select", { index, value: "" }) }, xl.say("look_inside"));
      body.append(element("div", { class: "x-inside" }, element("p", {}, line || xl.say("reply_info", { seed, model: model || "?" })), look));
    },
    show: (index, steps) => {
      const box = bodyOf(index) && bodyOf(index).querySelector(".x-inside");
      if (!box) return;
      const detail = element("div", { "aria-live": "polite" });
      const list = (chosen) => {
        bars.forEach((bar, at) => bar.setAttribute("aria-pressed", String(at === chosen)));
        detail.replaceChildren(candidates(steps[chosen], chosen));
      };
      const bars = steps.map((step, at) => element("button", {
        type: "button", class: "x-token", style: `--p: ${step.p}`, "aria-pressed": "false",
        onclick: () => list(at),
      }, element("span", { class: "x-bar" }), element("span", { lang: "zh-CN" }, shown(step.token)), element("small", {}, percent(step.p))));
      box.replaceChildren(box.firstChild, element("p", {}, xl.say("inside_note")), element("div", { class: "x-tokens" }, ...bars), detail);
      if (steps.length) list(steps.reduce((least, step, at) => (step.p < steps[least].p ? at : least), 0));
      box.scrollIntoView({ block: "nearest" });
    },
  };
})();
