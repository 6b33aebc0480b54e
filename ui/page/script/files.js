// Files: one conversation through the server's formats, all conversations in the browser alone.
(() => {
  const xl = window.xianliao;
  const MAX_FILE_BYTES = 2.5 * 2 ** 20;  // of one conversation: a request without credentials may have 3 MiB
  const MAX_ALL_BYTES = 20 * 2 ** 20, MAX_CHATS = 1000, MAX_MESSAGES = 4000, MAX_CHARACTERS = 500000;
  const ROLES = ["user", "assistant", "divider"];
  let waiting = [];

  // Returns a message with its known fields, or null.
  const message = (value) => {
    if (!value || typeof value.text !== "string" || !ROLES.includes(value.role)) return null;
    const known = { role: value.role, text: value.text };
    for (const name of ["seed", "temperature", "top_p", "variation", "spread"]) if (Number.isFinite(value[name])) known[name] = value[name];
    if (typeof value.model === "string") known.model = value.model.slice(0, 100);
    return known;
  };
  // Returns a conversation of a file under a new id, or null.
  const chat = (value) => {
    if (!value || !Array.isArray(value.messages) || value.messages.length > MAX_MESSAGES) return null;
    const messages = value.messages.map(message);
    const persona = Array.isArray(value.persona) ? value.persona.filter((turn) => typeof turn === "string") : [];
    const system = typeof value.system === "string" ? value.system : "";
    const characters = [...persona, system, ...messages.map((each) => (each ? each.text : ""))].join("").length;
    if (!messages.length || messages.includes(null) || characters > MAX_CHARACTERS || persona.length % 2) return null;
    const nodes = value.tree && Array.isArray(value.tree.nodes) ? value.tree.nodes.slice(0, 4 * MAX_MESSAGES) : [];
    const tree = { next: {}, nodes: nodes.map((node) => ({ parent: node && node.parent, message: message(node && node.message) })) };
    return { id: xl.newId(), title: String(value.title || messages[0].text).slice(0, 100), persona, system, messages, tree };
  };
  // Returns the turns of each dialogue of a conversation, the user's first: messages of one role are joined, a divider splits.
  const dialogues = ({ messages }) => {
    const all = [[]];
    let last = "";
    for (const { role, text } of messages) {
      const turns = all[all.length - 1];
      if (role === "divider") { all.push([]); last = ""; }
      else if (!text || (!turns.length && role === "assistant")) continue;
      else if (role === last) turns[turns.length - 1] += `\n${text}`;
      else { turns.push(text); last = role; }
    }
    return all.filter((turns) => turns.length > 1);
  };
  const fromLines = (text) => text.split("\n").filter((line) => line.trim()).map((line) => {
    const turns = JSON.parse(line);
    if (!Array.isArray(turns) || !turns.every((turn) => typeof turn === "string")) throw new Error("not a dialogue");
    return { messages: turns.map((each, at) => ({ role: ROLES[at % 2], text: each })) };
  });
  const save = (name, text) => xl.files.download({ name, text });
  const today = () => new Date().toISOString().slice(0, 10);

  xl.files = {
    // Returns what the last choice of the user left for an event.
    pending: () => waiting,
    export: (id, kind) => { waiting = [xl.store.plain(xl.store.read(id) || xl.chat.current()), kind]; xl.trigger("download", {}); },
    exportAll: () => {
      const chats = xl.store.all();
      if (!chats.length) { xl.notice(xl.say("nothing_to_export")); return; }
      const text = JSON.stringify({ chats }, (name, value) => (name === "signature" ? undefined : value), 1);
      save(`xianliao-${today()}.json`, text);
    },
    exportTraining: () => {
      const lines = xl.store.all().flatMap(dialogues).map((turns) => JSON.stringify(turns));
      if (lines.length) save(`xianliao-${today()}.jsonl`, `${lines.join("\n")}\n`);
      else xl.notice(xl.say("nothing_to_export"));
    },
    // Reads a file: all conversations here, one conversation by the server, which receives its text only.
    read: (name, text) => {
      let chats = null;
      try {
        if (name.endsWith(".jsonl")) chats = fromLines(text);
        else if (text.trimStart().startsWith("{")) chats = JSON.parse(text).chats;
      } catch { chats = name.endsWith(".jsonl") ? [] : null; }
      if (!Array.isArray(chats)) {
        waiting = [{ text: text.length > MAX_FILE_BYTES ? "" : text }];
        xl.trigger("upload", {});
        return;
      }
      const known = chats.slice(0, MAX_CHATS).map(chat).filter(Boolean);
      known.reverse().forEach(xl.store.write);
      xl.notice(known.length ? xl.say("imported_chats", { count: known.length }) : xl.say("not_a_file"));
      xl.side.list();
    },
    pick: () => {
      const input = document.querySelector("#import-file")
        || document.body.appendChild(xl.element("input", { id: "import-file", type: "file", accept: ".json,.jsonl,.md", hidden: true }));
      input.value = "";
      input.onchange = async () => {
        const file = input.files[0];
        const text = file.size > MAX_ALL_BYTES ? "" : await file.text().catch(() => "");
        xl.files.read(file.name, text.includes("\ufffd") ? "" : text);
      };
      input.click();
    },
    download: (file) => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([file.text], { type: "text/plain;charset=utf-8" }));
      link.download = file.name;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    },
  };
})();
