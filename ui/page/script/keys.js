// Keyboard, theme, drafts, and names and words that Gradio leaves out or has in English only.
(() => {
  const xl = window.xianliao, root = document.documentElement;
  const DRAFT = "xianliao.draft", THEME = "xianliao.theme";
  const box = () => document.querySelector("#message textarea"), stop = () => document.querySelector("#message .stop-button");

  // Theme: Gradio has the class `dark` on the body.
  const wantsDark = matchMedia("(prefers-color-scheme: dark)");
  xl.theme = () => localStorage.getItem(THEME) || "auto";
  const applyTheme = () => {
    const isDark = xl.theme() === "dark" || (xl.theme() === "auto" && wantsDark.matches);
    root.style.colorScheme = isDark ? "dark" : "light";
    if (document.body && document.body.classList.contains("dark") !== isDark) document.body.classList.toggle("dark", isDark);
  };
  xl.setTheme = (name) => { localStorage.setItem(THEME, name); applyTheme(); };
  wantsDark.addEventListener("change", applyTheme);
  applyTheme();
  addEventListener("DOMContentLoaded", () => {
    applyTheme();
    new MutationObserver(applyTheme).observe(document.body, { attributes: true, attributeFilter: ["class"] });
  });

  // Puts a text into the message box.
  xl.compose = (text) => {
    box().value = text;
    box().dispatchEvent(new Event("input", { bubbles: true }));
    box().focus();
  };
  // Keep a draft while the page reloads: Gradio reloads it when a server that was away is back.
  addEventListener("pagehide", () => sessionStorage.setItem(DRAFT, box() ? box().value : ""));
  const restoreDraft = () => {
    const draft = sessionStorage.getItem(DRAFT);
    if (!box() || !draft) return;
    sessionStorage.removeItem(DRAFT);
    xl.compose(draft);
  };
  const NAMES = { "#message .submit-button": "send", "#message .stop-button": "stop" };
  // Gradio has chosen the browser's language before this script runs: put its words into the chosen one.
  const LANG = xl.language === "zh" ? "zh-CN" : "en", { texts } = xl.given;
  const others = new Map(Object.entries(texts[xl.language === "zh" ? "en" : "zh"]).map(([name, text]) => [text, texts[xl.language][name]]));
  const translate = () => {
    if (root.lang !== LANG) root.lang = LANG;
    for (const part of document.querySelectorAll("#main > :not(#chat, #top), #panel > *")) {
      const walker = document.createTreeWalker(part, NodeFilter.SHOW_TEXT);
      while (walker.nextNode()) {
        const text = walker.currentNode.data, word = others.get(text.trim());
        if (word) walker.currentNode.data = text.replace(text.trim(), () => word);
      }
      for (const field of part.querySelectorAll("[placeholder]")) if (others.has(field.placeholder)) field.placeholder = others.get(field.placeholder);
      for (const field of part.querySelectorAll("[aria-label]")) {
        if (others.has(field.ariaLabel)) field.setAttribute("aria-label", others.get(field.ariaLabel));
        const named = /^(?:number input|range slider) for (.*)$/s.exec(field.ariaLabel);  // Gradio has these in English only
        if (named) field.setAttribute("aria-label", others.get(named[1]) || named[1]);
        else if (field.ariaLabel === "Reset to default value") {
          const slider = field.closest(".block").querySelector("[data-testid=block-info]");
          field.setAttribute("aria-label", `${slider.textContent} ${xl.say("reset")}`);
          field.title = field.ariaLabel;
        }
      }
    }
  };
  const WORDS = [[/^Connection (to the server was lost|errored out)/, "connection_lost"], [/^(Connection Lost|Error)$/, "error_title"], [/^(Info|Warning)$/, "info_title"]];
  new MutationObserver(() => {
    for (const [selector, name] of Object.entries(NAMES)) {
      const button = document.querySelector(`${selector}:not([aria-label])`);
      if (button) { button.setAttribute("aria-label", xl.say(name)); button.title = xl.say(name); }
    }
    for (const part of document.querySelectorAll(".toast-title, [data-testid=toast-text]")) {
      const word = WORDS.find(([pattern]) => pattern.test(part.textContent.trim()));
      if (word && part.textContent !== xl.say(word[1])) part.textContent = xl.say(word[1]);
    }
    // Gradio shows a failure; what the person has done or can correct is a short notice.
    for (const part of document.querySelectorAll(".toast-body.info [data-testid=toast-text]:not([data-shown])")) {
      part.dataset.shown = "";
      xl.notice(part.textContent.trim());
      part.closest(".toast-body").querySelector(".toast-close").click();
    }
    for (const close of document.querySelectorAll(".toast-close:not([title])")) {
      close.title = xl.say("close");
      close.setAttribute("aria-label", xl.say("close"));
    }
    translate();
    restoreDraft();
  }).observe(document, { childList: true, subtree: true });

  // Enter does not send while it ends the composition of an input method, or while a reply is being decoded.
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
  const escape = () => {
    if (xl.side.closeMenus()) return;
    if (root.classList.contains("x-panel")) xl.side.panel(false);
    else if (!xl.wide() && root.classList.contains("x-side")) xl.side.toggle(false);
    else if (stop()) stop().click();
  };
  document.addEventListener("keydown", (event) => {
    const isControl = event.ctrlKey || event.metaKey;
    if (event.isComposing) return;
    if (event.key === "Escape") escape();
    else if (isControl && !event.shiftKey && event.key.toLowerCase() === "k") { event.preventDefault(); xl.side.search(); }
    else if (isControl && event.shiftKey && event.key.toLowerCase() === "o") {
      event.preventDefault();
      document.querySelector("#new").click();
    } else if (event.key === "ArrowUp" && event.target === box() && !box().value && !stop()) {
      const index = xl.chat.current().messages.findLastIndex(({ role }) => role === "user");
      if (index >= 0) { event.preventDefault(); xl.chat.edit(index); }
    }
  });
  // A click that would change the conversation stops a reply that is being decoded first.
  document.addEventListener("click", (event) => {
    const wanted = event.target.closest("[data-changes], #divide, #more");
    if (!wanted) return;
    if (wanted.id === "more" && xl.chat.isOffering()) { event.preventDefault(); event.stopPropagation(); return; }
    if (wanted.id === "more" && !stop()) xl.chat.offering(true);
    if (!stop()) return;
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
