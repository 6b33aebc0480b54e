// Storage of conversations in this browser: one entry per conversation, so that two tabs do not overwrite each other.
(() => {
  const PREFIX = "xianliao.chat.", OPEN = "xianliao.open", DRAFT = "xianliao.draft", keep = KEEP_CHATS;
  const MAX_FILE_BYTES = 2.5 * 2 ** 20;  // a request without credentials may have 3 MiB
  const entries = () => Object.keys(localStorage).filter((key) => key.startsWith(PREFIX)).flatMap((key) => {
    try { return [JSON.parse(localStorage.getItem(key))]; } catch { return []; }
  }).filter((chat) => chat && chat.id).sort((a, b) => b.updated - a.updated);
  const stored = (id) => { try { return JSON.parse(localStorage.getItem(PREFIX + id)); } catch { return null; } };
  const seen = {}, chinese = navigator.language.startsWith("zh");
  const QUESTIONS = {
    "delete": ["删除这段对话？", "Delete this chat?"], "delete all": ["删除存下的所有对话？", "Delete all saved chats?"],
  };
  window.xianliao = {
    list: () => keep ? entries().map((chat) => [chat.title || "…", chat.id]) : [],
    open: () => {
      const chat = keep && stored(sessionStorage.getItem(OPEN) || "-");
      if (chat) seen[chat.id] = chat.updated;
      return chat || null;
    },
    load: (id) => { sessionStorage.setItem(OPEN, id); return window.xianliao.open(); },
    // Returns the chat as saved, whether that succeeded, and whether it has a new id because another tab changed it.
    save: (chat) => {
      if (!chat || !chat.id) sessionStorage.removeItem(OPEN);
      if (!keep || !chat || !chat.id) return [chat, true, false];
      const old = stored(chat.id), forked = Boolean(old) && old.updated !== seen[chat.id];
      if (forked) {
        const bytes = [...crypto.getRandomValues(new Uint8Array(8))];
        chat = { ...chat, id: bytes.map((byte) => byte.toString(16).padStart(2, "0")).join("") };
      }
      sessionStorage.setItem(OPEN, chat.id);
      const updated = Date.now();
      try {
        localStorage.setItem(PREFIX + chat.id, JSON.stringify({ ...chat, updated }));
        seen[chat.id] = updated;
        return [chat, true, forked];
      } catch { return [chat, false, forked]; }
    },
    // Inputs of the event that shows the list: the chat, and [could be saved, list of chats, has a new id].
    listed: (chat) => [chat, [true, window.xianliao.list(), false]],
    saved: (chat) => {
      const [saved, succeeded, forked] = window.xianliao.save(chat);
      return [saved, [succeeded, window.xianliao.list(), forked]];
    },
    removeAsked: (chat) => window.xianliao.confirmed("delete") ? window.xianliao.remove(chat.id) : chat,
    removeAllAsked: (chat) => window.xianliao.confirmed("delete all") ? window.xianliao.removeAll() : chat,
    confirmed: (what) => confirm(QUESTIONS[what][chinese ? 0 : 1]),
    remove: (id) => { localStorage.removeItem(PREFIX + id); return null; },
    removeAll: () => { entries().forEach((chat) => localStorage.removeItem(PREFIX + chat.id)); return null; },
    // Returns the text of a file that the user chooses. The browser reads it; the server never receives a file.
    pick: () => new Promise((resolve) => {
      const input =
        document.querySelector("#import-file") || document.body.appendChild(document.createElement("input"));
      Object.assign(input, { id: "import-file", type: "file", accept: ".json,.md", hidden: true, value: "" });
      input.onchange = async () => {
        const file = input.files[0], read = file.size > MAX_FILE_BYTES ? "" : await file.text().catch(() => "");
        resolve({ text: read.includes("\ufffd") ? "" : read });
      };
      input.click();
    }),
    logOut: () => fetch("logout", { method: "POST" }).then(() => location.reload()),
    download: (file) => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([file.text], { type: "text/plain;charset=utf-8" }));
      link.download = file.name;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    },
  };
  // Keep a draft while the page reloads: Gradio reloads it when a server that was away is back.
  addEventListener("pagehide", () => {
    const box = document.querySelector("#message textarea");
    sessionStorage.setItem(DRAFT, box ? box.value : "");
  });
  const restoreDraft = () => {
    const box = document.querySelector("#message textarea"), draft = sessionStorage.getItem(DRAFT);
    if (!box || !draft) return;
    sessionStorage.removeItem(DRAFT);
    box.value = draft;
    box.dispatchEvent(new Event("input", { bubbles: true }));
  };
  // Gradio gives these two buttons no name for screen readers.
  const NAMES = { "submit-button": ["发送", "Send"], "stop-button": ["停止", "Stop"] };
  new MutationObserver(() => {
    for (const [kind, names] of Object.entries(NAMES)) {
      const button = document.querySelector(`#message .${kind}:not([aria-label])`);
      if (button) button.setAttribute("aria-label", names[chinese ? 0 : 1]);
    }
    restoreDraft();
  }).observe(document, { childList: true, subtree: true });
  // Enter does not send while it ends the composition of an input method, or while a reply is being decoded.
  const stop = () => document.querySelector("#message .stop-button");
  for (const kind of ["keydown", "keypress"]) {
    document.addEventListener(kind, (event) => {
      if (event.key !== "Enter") return;
      if (event.isComposing || event.keyCode === 229) event.stopPropagation();
      else if (stop() && !event.shiftKey && event.target.closest("#message")) {
        event.preventDefault();
        event.stopPropagation();
      }
    }, true);
  }
  // A click that would change the conversation stops a reply that is being decoded first.
  document.addEventListener("click", (event) => {
    const wanted = event.target.closest("#sidebar button, #saved label, #divide, #more, #several button, #chat button");
    if (!wanted || !stop() || wanted.matches(".toggle-button")) return;
    event.preventDefault();
    event.stopPropagation();
    stop().click();
    const again = setInterval(() => {
      if (stop()) return;
      clearInterval(again);
      setTimeout(() => wanted.click(), 300);
    }, 50);
  }, true);
})();
