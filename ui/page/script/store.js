// Storage of conversations in this browser: one entry per conversation, so that two tabs do not overwrite each other.
(() => {
  const xl = window.xianliao, { keep } = xl.given;
  const PREFIX = "xianliao.chat.", OPEN = "xianliao.open";
  const seen = {}, memory = {};
  let listed = null, latest = 0;
  const parsed = (text) => { try { return JSON.parse(text); } catch { return null; } };
  const stored = (id) => (keep ? parsed(localStorage.getItem(PREFIX + id)) : memory[id]) || null;
  const ids = () => Object.keys(localStorage).filter((key) => key.startsWith(PREFIX)).map((key) => key.slice(PREFIX.length));
  addEventListener("storage", () => { listed = null; if (xl.side) xl.side.list(); });
  const entry = (chat) => ({
    id: chat.id, title: String(chat.title || "…"), updated: chat.updated || 0,
    text: [chat.title, ...chat.messages.map((message) => message.text)].join("\n").toLowerCase(),
  });
  xl.store = {
    // Returns [{id, title, updated, text}] of the stored conversations, the newest first.
    list: () => {
      listed ??= keep
        ? ids().map(stored).filter((chat) => chat && chat.id && Array.isArray(chat.messages)).map(entry)
        : [];
      return listed.sort((a, b) => b.updated - a.updated);
    },
    all: () => xl.store.list().map(({ id }) => stored(id)),
    read: stored,
    openId: () => sessionStorage.getItem(OPEN),
    // Returns the conversation that was open in this tab.
    open: () => {
      const chat = keep && stored(sessionStorage.getItem(OPEN) || "-");
      if (!chat) return null;
      seen[chat.id] = chat.updated;
      xl.tree.use(chat);
      return xl.store.plain(chat);
    },
    load: (id) => { sessionStorage.setItem(OPEN, id); return xl.store.open(); },
    // Returns the part of a stored conversation that the server reads.
    plain: ({ id, title, persona, system, messages }) => ({ id, title, persona: persona || [], system: system || "", messages }),
    // Stores a conversation with its tree. Returns it, under a new id if another tab has changed the old one.
    save: (chat) => {
      if (!chat || !chat.id) sessionStorage.removeItem(OPEN);
      if (!chat || !chat.id) return chat;
      const old = stored(chat.id);
      if (keep && old && old.updated !== seen[chat.id]) chat = { ...chat, id: xl.newId() };
      sessionStorage.setItem(OPEN, chat.id);
      xl.store.write({ ...chat, tree: xl.tree.grown(chat) });
      return chat;
    },
    write: (chat) => {
      latest = Math.max(Date.now(), latest + 1);  // imported ones of one millisecond keep their order
      const full = { ...chat, updated: latest };
      if (!keep) { memory[chat.id] = full; return; }
      try {
        localStorage.setItem(PREFIX + chat.id, JSON.stringify(full));
        seen[chat.id] = full.updated;
        listed = [...xl.store.list().filter(({ id }) => id !== chat.id), entry(full)];
      } catch { xl.notice(xl.say("full")); }
    },
    remove: (id) => { localStorage.removeItem(PREFIX + id); delete memory[id]; listed = null; },
    removeAll: () => { ids().forEach((id) => localStorage.removeItem(PREFIX + id)); listed = null; },
  };

  // Settings that are kept: style, temperature, top-p, model, spread of variants. A seed is not kept.
  const KEY = "xianliao.settings";
  const isBetween = (value, low, high) => typeof value === "number" && value >= low && value <= high;
  xl.settings = {
    // What was chosen while the page was still loading stays.
    read: (standard, models, current) => {
      if (current.slice(1).some((value, index) => value !== standard[index + 1])) return [current[0] || standard[0], ...current.slice(1)];
      const [preset, temperature, topP, model, spread = standard[4]] = parsed(localStorage.getItem(KEY)) || [];
      const isKnown = ["careful", "balanced", "free"].includes(preset) && models.includes(model)
        && isBetween(temperature, 0.1, 2) && isBetween(topP, 0.05, 1) && isBetween(spread, 0, 2);
      return isKnown ? [preset, temperature, topP, model, spread] : standard;
    },
    write: (values) => { localStorage.setItem(KEY, JSON.stringify(values)); },
    forget: (standard) => { localStorage.removeItem(KEY); return standard; },
  };
})();
