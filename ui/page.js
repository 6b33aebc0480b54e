// The page's own storage: one entry a conversation in this browser, so that two tabs do not overwrite each other.
(() => {
  const PREFIX = "xianliao.chat.", OPEN = "xianliao.open", DRAFT = "xianliao.draft", keep = KEEP_CHATS;
  const entries = () => Object.keys(localStorage).filter((key) => key.startsWith(PREFIX)).flatMap((key) => {
    try { return [JSON.parse(localStorage.getItem(key))]; } catch { return []; }
  }).filter((chat) => chat && chat.id).sort((a, b) => b.updated - a.updated);
  window.xianliao = {
    list: () => keep ? entries().map((chat) => [chat.title || "…", chat.id]) : [],
    open: () => {
      const found = keep && localStorage.getItem(PREFIX + (sessionStorage.getItem(OPEN) || "-"));
      return found ? JSON.parse(found) : null;
    },
    load: (id) => { sessionStorage.setItem(OPEN, id); return window.xianliao.open(); },
    // true when there is nothing to save or it was saved
    save: (chat) => {
      sessionStorage.setItem(OPEN, (chat && chat.id) || "");
      if (!keep || !chat || !chat.id) return true;
      try {
        localStorage.setItem(PREFIX + chat.id, JSON.stringify({ ...chat, updated: Date.now() }));
        return true;
      } catch { return false; }
    },
    remove: (id) => localStorage.removeItem(PREFIX + id),
    removeAll: () => Object.keys(localStorage).filter((key) => key.startsWith(PREFIX)).forEach((key) => localStorage.removeItem(key)),
    download: (file) => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([file.text], { type: "text/plain;charset=utf-8" }));
      link.download = file.name;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    },
  };
  // What was being written when the page was loaded anew: Gradio does that when a server that was away is back.
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
  // Gradio gives these two buttons no name for those who hear the page.
  const NAMES = { "submit-button": ["发送", "Send"], "stop-button": ["停止", "Stop"] };
  new MutationObserver(() => {
    for (const [kind, names] of Object.entries(NAMES)) {
      const button = document.querySelector(`#message .${kind}:not([aria-label])`);
      if (button) button.setAttribute("aria-label", names[navigator.language.startsWith("zh") ? 0 : 1]);
    }
    restoreDraft();
  }).observe(document, { childList: true, subtree: true });
  // Enter that ends the composition of an input method writes, and does not send.
  for (const kind of ["keydown", "keypress"]) {
    document.addEventListener(kind, (event) => {
      if (event.key === "Enter" && (event.isComposing || event.keyCode === 229)) event.stopPropagation();
    }, true);
  }
})();
