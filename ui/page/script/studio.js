// The training view: data, cleaning report, preset, run, result. The server runs the commands; here is what they have said so far.
(() => {
  const xl = window.xianliao, { element } = xl, root = document.documentElement;
  const OPEN = "xianliao.studio", MAX_CHARACTERS = 900000;  // as UTF-8 in JSON within the largest request of 3 MiB
  const orders = [], picked = [], parts = {};
  let props, send, asked = 0, preset = "", isLoading = false, lastTask;
  const say = (name, values) => xl.say(`studio_${name}`, values);
  const now = () => (props && props.value) || {};
  const isOpen = () => root.classList.contains("x-training");

  const order = (value) => {
    if (value.do !== "look") xl.clearNotices();  // of an earlier order
    orders.push(value);
    asked = Date.now();
    send("submit");
    draw();
  };
  const waiting = () => asked && Date.now() - asked < 20000;

  // Draws a part anew if what it shows has changed; the element with the focus keeps it.
  const put = (part, shown, build) => {
    const key = JSON.stringify([shown, xl.language]);
    if (part.xKey === key) return;
    const focused = part.contains(document.activeElement) ? document.activeElement.id : "";
    part.xKey = key;
    part.replaceChildren(...build().flat().filter(Boolean));
    part.hidden = !part.childNodes.length;
    if (focused && document.getElementById(focused)) document.getElementById(focused).focus();
  };
  const button = (id, name, run, kind = "x-plain", disabled = false) => element("button", { type: "button", id: `studio-${id}`, class: kind, onclick: run, disabled }, say(name));
  const heading = (name) => element("h2", {}, say(name));
  const paragraph = (text, kind = "") => element("p", { class: kind }, text);
  const failed = (text) => element("p", { class: "x-failed", role: "alert" }, say("failed", { error: text }));
  const command = (line) => line && element("details", { class: "x-command" }, element("summary", {}, say("command")),
    element("div", {}, element("code", { tabindex: "0" }, line),
      xl.iconButton("copy", say("copy"), () => xl.copy(line).then(() => xl.notice(xl.say("copied"))))));
  const pairs = (list) => element("dl", { class: "x-pairs" }, ...list.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, String(value)))));
  // Returns a time of a progress bar, such as 2:50:07 or 03:10, in words.
  const inWords = (left) => {
    const [seconds = 0, minutes = 0, hours = 0] = left.split(":").reverse().map(Number);
    return hours ? say("hours", { hours, minutes }) : minutes ? say("minutes", { minutes }) : say("seconds", { seconds });
  };
  const bar = (name, progress) => {
    const [done, total, left] = progress || [0, 0, ""];
    const box = element("div", {}, element("p", { class: "x-line" }, total > 1 ? say("step", { done, total, left: inWords(left) }) : name),
      element("progress", { "aria-label": name, max: total || 1 }));
    if (total > 1) box.lastChild.value = done;
    return box;
  };

  // Returns the bar of a command that counts no steps for people: how much is done, and for how long it has worked.
  const working = (name, progress, seconds) => {
    const [done, total] = progress || [0, 0], percent = Math.round(100 * done / total);
    const box = bar(total > 1 ? say("working_percent", { name, percent, seconds }) : say("working", { name, seconds }));
    if (total > 1) Object.assign(box.lastChild, { max: total, value: done });
    return box;
  };

  // Data.
  const decode = (bytes) => {
    try { return new TextDecoder("utf-8", { fatal: true }).decode(bytes); } catch { return new TextDecoder("gb18030").decode(bytes); }
  };
  const pick = async (input) => {
    for (const file of input.files) {
      const text = file.size > 3 * MAX_CHARACTERS ? null : decode(await file.arrayBuffer());
      if (text === null) xl.notice(say("too_large", { characters: MAX_CHARACTERS }));
      else picked.push({ name: file.name, text });
    }
    input.value = "";
    drawPicked();
  };
  const drawPicked = () => put(parts.picked, picked.map(({ name, text }) => [name, text.length]), () => picked.map(({ name, text }, index) => element(
    "li", {}, element("span", {}, say("picked", { name, characters: text.length })),
    xl.iconButton("close", say("remove", { name }), () => { picked.splice(index, 1); drawPicked(); }))));
  const prepare = () => {
    const texts = [{ name: "", text: parts.text.value }, ...picked].filter(({ text }) => text.trim());
    const bytes = new Blob(texts.map(({ text }) => JSON.stringify(text))).size;
    if (bytes > 2.8 * 2 ** 20) { xl.notice(say("too_large", { characters: MAX_CHARACTERS })); return; }
    const chosen = [...parts.files.querySelectorAll("input:checked")].map(({ value }) => value);
    order({ do: "prepare", texts, chosen, person: parts.person.value });
  };
  const dataForm = () => {
    parts.text = element("textarea", { id: "studio-text", rows: 8, spellcheck: "false", lang: "zh-CN", placeholder: say("paste_example") });
    parts.person = element("input", { id: "studio-person", maxlength: 100, autocomplete: "off" });
    parts.picked = element("ul", { class: "x-picked" });
    parts.files = element("fieldset", { class: "x-files" });
    parts.prepare = element("div", { class: "x-row-buttons" });
    const input = element("input", { id: "studio-file", type: "file", multiple: true, hidden: true, onchange: () => pick(input) });
    return element("div", { class: "x-form" },
      element("label", { for: "studio-text" }, say("paste")), parts.text, parts.picked, input,
      element("div", { class: "x-row-buttons" }, button("pick", "pick", () => input.click())),
      parts.files, element("label", { for: "studio-person" }, say("person")), parts.person, paragraph(say("only_consent"), "x-soft"), parts.prepare);
  };
  const drawData = ({ inputs = [], report, task, files = [], error, progress, seconds, folder, work, commands = {} }) => {
    const hasSet = Boolean(report) || task === "prepare";
    parts.form.hidden = hasSet;
    put(parts.files, [files, folder], () => (files.length ? [element("legend", {}, say("in_folder", { folder })), ...files.map((name) => element(
      "label", {}, element("input", { type: "checkbox", value: name }), element("span", {}, name)))] : []));
    put(parts.prepare, [task, waiting()], () => [button("prepare", "prepare", prepare, "x-strong", Boolean(task || waiting()))]);
    put(parts.given, [hasSet, inputs, task, progress, task === "prepare" && seconds, error, report && 1, work, commands.prepare], () => [
      hasSet && paragraph(say("learns_from", { names: inputs.map((name) => name || say("pasted")).join("、") })),
      task === "prepare" && working(say("preparing"), progress, seconds),
      task === "prepare" && button("stop", "cancel", () => order({ do: "stop" })),
      !report && error && failed(error),
      (hasSet || error) && command(commands.prepare),
      work && paragraph(say("folder", { folder: work }), "x-soft"),
      report && button("again", "again", () => { if (!confirmed()) return; preset = ""; order({ do: "again" }); }, "x-plain", Boolean(task)),
    ]);
  };

  // Cleaning report.
  const drawReport = ({ report }) => put(parts.report, report, () => {
    if (!report) return [];
    const { counts, reasons, examples, samples } = report;
    const names = ["read", "kept_whole", "split", "dropped"], sets = [["train_count", "train"], ["valid_count", "valid"]];
    return [heading("report"),
      pairs([...names.map((name) => [say(name), counts[name] || 0]), ...sets.map(([name, key]) => [say(name), counts[key]])]),
      counts.valid < 50 && paragraph(say("few"), "x-soft"),
      reasons.length ? element("table", {}, element("thead", {}, element("tr", {}, element("th", { scope: "col" }, say("reason")), element("th", { scope: "col" }, say("count")))),
        element("tbody", {}, ...reasons.map(([kind, name, count, text]) => element("tr", {},
          element("td", {}, element("b", {}, say(`kind_${kind}`)), ` ${text || name}`), element("td", {}, String(count)))))) : paragraph(say("clean")),
      examples.length > 0 && element("h3", {}, say("examples")),
      ...examples.map(([rule, before, after]) => element("p", { class: "x-example-line", lang: "zh-CN", title: rule }, element("del", {}, before), " → ",
        after === "–" ? element("span", { class: "x-soft" }, say("removed")) : element("ins", {}, after))),
      samples.length > 0 && element("h3", {}, say("samples")),
      ...samples.map((turns) => element("ol", { class: "x-sample", lang: "zh-CN" }, ...turns.map((turn) => element("li", {}, turn))))];
  });

  // Preset and estimate.
  const confirmed = () => now().outcome !== "stopped" || confirm(say("ask_new"));
  const isOwn = (name) => !xl.given.texts[xl.language][`studio_title_${name}`];  // a file of the folder
  const titled = (name) => (isOwn(name) ? [element("b", {}, name)] : [element("b", {}, say(`title_${name}`)), " ", element("small", { class: "x-soft" }, name)]);
  const note = (name, isNew) => (isOwn(name) ? `${say("note_own")} · ${say(isNew ? "is_new" : "fine_tunes")}` : say(`note_${name}`));
  const drawPreset = ({ report, presets = [], task, seconds, estimate = [], error, outcome, commands = {}, messages = [], ...state }) => {
    preset = presets.some(([name]) => name === preset) ? preset : state.preset || (presets[0] || [""])[0];
    const isBusy = Boolean(task || waiting());
    put(parts.preset, [Boolean(report), presets, preset, isBusy, task, task === "estimate" && seconds, estimate, !outcome && error, messages, commands.estimate], () => (!report ? [] : [
      heading("preset"),
      element("div", { role: "radiogroup", "aria-label": say("preset"), class: "x-presets" }, ...presets.map(([name, isNew]) => element("label", {},
        element("input", { type: "radio", name: "studio-preset", id: `studio-preset-${name}`, value: name, checked: name === preset, disabled: isBusy, onchange: () => { preset = name; draw(); } }),
        element("span", {}, ...titled(name), paragraph(note(name, isNew)))))),
      element("div", { class: "x-row-buttons" }, task === "estimate" ? button("stop", "cancel", () => order({ do: "stop" }))
        : button("estimate", "estimate", () => confirmed() && order({ do: "estimate", preset }), "x-plain", isBusy)),
      task === "estimate" && working(say("estimating"), null, seconds),
      estimate.length > 0 && preset === state.preset && element("dl", { class: "x-estimate" }, ...estimate.filter(([name]) => name).flatMap(([name, text]) => [element("dt", {}, name === "training" ? say("run") : name), element("dd", {}, text)])),
      ...(preset === state.preset ? estimate.filter(([name]) => !name).map(([, text]) => paragraph(text, "x-soft")) : []),
      !outcome && error && failed(error),
      estimate.length > 0 && command(commands.estimate)]));
  };

  // Run.
  const drawRun = ({ report, task, stopping, outcome, progress, curves, result, messages = [], error, commands = {} }) => {
    const before = result && result.before !== null ? [[0, result.before]] : [], valid = curves && curves.valid.length ? [...before, ...curves.valid] : [];
    const isRunning = task === "train", isBusy = Boolean(task || waiting());
    put(parts.runHead, [Boolean(report)], () => (report ? [heading("run")] : []));
    const isOver = ["stopped", "failed", "finished"].includes(outcome);
    put(parts.runButtons, [Boolean(report), task, stopping, outcome, isBusy, preset], () => (!report ? [] : [element("div", { class: "x-row-buttons" },
      isRunning && button("stop", "stop", () => order({ do: "stop" }), "x-strong", stopping),
      !isRunning && ["stopped", "failed"].includes(outcome) && button("resume", "resume", () => order({ do: "resume" }), "x-strong", isBusy),
      !isRunning && button("start", "start", () => confirmed() && order({ do: "train", preset }), isOver ? "x-plain" : "x-strong", isBusy))]));
    put(parts.runState, [outcome, stopping, error, isRunning], () => [
      stopping && isRunning && paragraph(say("stopping")),
      !isRunning && outcome === "stopped" && paragraph(say("stopped")), !isRunning && outcome === "finished" && paragraph(say("finished")),
      outcome === "failed" && error && failed(error)]);
    const name = say(progress ? "training" : "starting");
    put(parts.runLive, [isRunning && progress, isRunning, curves, before], () => (!outcome ? [] : [
      isRunning && bar(name, progress),
      isRunning && curves && curves.tokens_per_second && paragraph(say("speed", { speed: Math.round(curves.tokens_per_second) }), "x-soft"),
      curves && curves.loss.length > 1 && xl.curve(say("loss"), curves.loss),
      valid.length > 0 && xl.curve(say("valid"), valid)]));
    const isLogOpen = Boolean(parts.runLog.querySelector("details[open] > pre"));
    put(parts.runLog, [isRunning && messages, outcome && commands.train, outcome === "stopped" && commands.resume], () => [
      isRunning && messages.length > 0 && element("details", { class: "x-command", open: isLogOpen }, element("summary", {}, say("log")), element("pre", { tabindex: "0" }, messages.join("\n"))),
      outcome && command(outcome === "stopped" ? commands.resume : commands.train)]);
  };

  // Result.
  const drawResult = ({ result, task, outcome }) => put(parts.result, [result, task, outcome, isLoading], () => {
    if (!result || task === "train" || !outcome) return [];
    const digits = (value) => (value === null ? "" : value.toFixed(3)), { before, best, best_step: step, valid, sample } = result;
    const values = { before: digits(before), best: digits(best), step, valid };
    return [heading("result"),
      best !== null && before !== null && paragraph(say(best < before ? "gain" : "no_gain"), "x-verdict"),
      paragraph(best === null ? say("no_valid") : say(before === null ? "best" : "before_after", values), "x-figure"),
      valid > 0 && valid < 50 && paragraph(say("few"), "x-soft"),
      sample && pairs([[say("you"), sample[0]], ...(sample[2] === null ? [] : [[say("was"), sample[2]]]), [say("is"), sample[1]]]),
      element("div", { class: "x-row-buttons" }, button("chat", isLoading ? "loading" : "chat", () => { isLoading = true; draw(); send("select"); }, "x-strong", isLoading || Boolean(task)))];
  });

  const draw = () => {
    if (!parts.given) return;
    const state = now();
    [drawData, drawReport, drawPreset, drawRun, drawResult].forEach((each) => each(state));
    parts.run.hidden = parts.runHead.hidden;
    parts.body.setAttribute("aria-busy", String(Boolean(state.task)));
    if (state.task === undefined || state.task === lastTask || !isOpen()) return;
    const next = state.task === "train" ? parts.run : lastTask === "prepare" ? parts.report : lastTask === "train" ? parts.result : null;
    lastTask = state.task;
    if (next && !next.hidden) next.scrollIntoView({ block: "start" });  // what has just begun or come about
  };

  xl.studio = {
    nextOrder: () => [orders.shift() || { do: "look" }],
    failed: () => { asked = 0; isLoading = false; draw(); },
    toggle: (isWanted) => {
      root.classList.toggle("x-training", isWanted);
      sessionStorage.setItem(OPEN, isWanted ? "open" : "");
      if (isWanted) { order({ do: "look" }); document.querySelector("#studio-back").focus(); } else document.querySelector("#message textarea").focus();
    },
    // The result is loaded and selected: talk to it.
    opened: (values) => {
      isLoading = false;
      xl.settings.write(values);
      xl.studio.toggle(false);
      xl.chat.open(null);
      draw();
    },
  };
  xl.draw.studio = (container, properties, trigger, watch) => {
    props = properties;
    send = (name) => setTimeout(() => trigger(name, {}), 0);
    for (const name of ["given", "report", "preset", "result", "run", "runHead", "runButtons", "runState", "runLive", "runLog"]) {
      parts[name] = element(["report", "preset", "result", "run"].includes(name) ? "section" : "div", ["report", "preset", "result", "run"].includes(name) ? { class: "x-card" } : {});
    }
    parts.runState.setAttribute("role", "status");
    parts.form = dataForm();
    parts.run.append(parts.runHead, parts.runButtons, parts.runState, parts.runLive, parts.runLog);
    parts.body = element("div", { class: "x-studio-column" },
      paragraph(say("intro"), "x-intro"),
      element("section", { class: "x-card" }, heading("data"), parts.form, parts.given), parts.report, parts.preset, parts.run, parts.result);
    container.className = "x-studio-page";
    container.replaceChildren(
      element("div", { class: "x-top" }, xl.iconButton("previous", say("back"), () => xl.studio.toggle(false), { id: "studio-back" }), element("h1", {}, xl.say("studio"))),
      parts.body);
    const block = container.closest("#studio");
    block.setAttribute("role", "region");
    block.setAttribute("aria-label", xl.say("studio"));
    watch("value", () => { asked = 0; draw(); });
    drawPicked();
    draw();
    if (sessionStorage.getItem(OPEN) === "open") { root.classList.add("x-training"); order({ do: "look" }); }
    setInterval(() => {
      if (isOpen() && !document.hidden && now().task && !waiting()) order({ do: "look" });
      else if (isOpen() && now().folder === undefined && !waiting()) order({ do: "look" });
    }, 1000);
  };
  if (sessionStorage.getItem(OPEN) === "open") root.classList.add("x-training");
})();
