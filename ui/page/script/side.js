// The list of conversations, the bar at the top, and the head of the settings.
(() => {
  const xl = window.xianliao, { element } = xl, root = document.documentElement;
  const SIDE = "xianliao.side", DAY = 24 * 3600 * 1000;
  let list, search, heading;
  const midnight = () => new Date().setHours(0, 0, 0, 0);
  const group = (updated) => {
    const start = midnight();
    return updated >= start ? "today" : updated >= start - DAY ? "yesterday" : updated >= start - 6 * DAY ? "week" : "earlier";
  };
  const closeMenus = (except) => document.querySelectorAll(".x-menu").forEach((menu) => {
    if (menu === except) return;
    menu.previousSibling.setAttribute("aria-expanded", "false");
    menu.remove();
  });
  const rename = (row, { id, title }) => {
    const box = element("input", { class: "x-rename", "aria-label": xl.say("rename"), maxlength: 100 });
    const done = (isKept) => {
      box.onblur = null;
      const chat = xl.store.read(id), name = box.value.trim();
      if (isKept && name && chat) {
        xl.store.write({ ...chat, title: name });
        if (xl.chat.current().id === id) xl.chat.set({ ...xl.chat.current(), title: name });
      }
      xl.side.list();
    };
    box.value = title;
    box.onblur = () => done(true);
    box.onkeydown = (event) => {
      event.stopPropagation();
      if (event.key === "Enter" && !event.isComposing) done(true);
      if (event.key === "Escape") done(false);
    };
    row.replaceChildren(box);
    box.select();
  };
  const remove = ({ id, title }) => {
    if (!confirm(xl.say("ask_delete", { title }))) return;
    xl.store.remove(id);
    if (xl.chat.current().id === id) xl.chat.open(null);
    xl.side.list();
  };
  const removeAll = () => {
    if (!confirm(xl.say("ask_delete_all"))) return;
    xl.store.removeAll();
    xl.chat.open(null);
  };
  // Returns a button that opens a menu of [name of its text, function, class, whether it changes the conversation].
  const menuButton = (label, items, attributes = {}) => {
    const item = ([name, run, kind = "", changes = false]) => element("button", {
      type: "button", role: "menuitem", "data-name": name, class: kind, "data-changes": changes, onclick: () => { closeMenus(); run(); },
    }, xl.say(name));
    const open = ({ currentTarget: button }) => {
      const isOpen = Boolean(button.nextSibling);
      closeMenus();
      if (isOpen) return;
      button.setAttribute("aria-expanded", "true");
      button.after(element("div", { class: "x-menu", role: "menu" }, ...items.map(item)));
      button.nextSibling.scrollIntoView({ block: "nearest" });  // that of the lowest chat is below the list
      button.nextSibling.firstChild.focus({ preventScroll: true });
    };
    return element("span", { class: "x-more" }, xl.iconButton("menu", label, open, { "aria-haspopup": "menu", "aria-expanded": "false", ...attributes }));
  };
  xl.menuButton = menuButton;
  const row = (entry) => {
    const isOpen = entry.id === xl.store.openId(), item = element("div", { class: `x-row${isOpen ? " current" : ""}` });
    const more = menuButton(xl.say("menu", { title: entry.title }), [
      ["rename", () => rename(item, entry)],
      ["export_json", () => xl.files.export(entry.id, "json")],
      ["export_markdown", () => xl.files.export(entry.id, "md")],
      ["delete", () => remove(entry), "x-danger"],
    ]);
    item.append(element("button", {
      type: "button", class: "x-open", "aria-current": isOpen ? "true" : null, "data-changes": true,
      title: new Date(entry.updated).toLocaleString(root.lang), onclick: () => xl.chat.open(entry.id),
    }, entry.title), more);
    return item;
  };

  const personaName = (name) => xl.say(`persona_${name}`).split("\n")[0];
  xl.side = {
    personaName,
    toggle: (isOpen = !root.classList.contains("x-side")) => {
      root.classList.toggle("x-side", isOpen);
      if (xl.wide()) localStorage.setItem(SIDE, isOpen ? "open" : "closed");
    },
    panel: (isOpen = !root.classList.contains("x-panel")) => {
      root.classList.toggle("x-panel", isOpen);
      document.querySelector(isOpen ? "#panel .x-button" : "#settings-button")?.focus();
    },
    search: () => { xl.side.toggle(true); setTimeout(() => search.focus(), 50); },
    // Draws the cards of the personas again, and the face at the top.
    personas: () => {
      const chosen = xl.persona();
      document.querySelectorAll(".x-persona").forEach((card) => card.setAttribute("aria-pressed", String(card.dataset.name === chosen)));
      const face = document.querySelector("#top .x-face");
      if (face && face.className !== xl.face(chosen).className) face.replaceWith(xl.face(chosen));
    },
    name: (title) => { if (heading) heading.textContent = title || (xl.persona() ? personaName(xl.persona()) : xl.chat.botName() || xl.say("name")); },
    list: () => {
      if (!list) return;
      const wanted = search.value.trim().toLowerCase(), entries = xl.store.list();
      const matching = entries.filter(({ text }) => text.includes(wanted));
      let last = "";
      list.replaceChildren(...matching.flatMap((entry) => {
        const name = group(entry.updated), isNew = name !== last;
        last = name;
        return isNew ? [element("h2", {}, xl.say(name)), row(entry)] : [row(entry)];
      }));
      if (!matching.length) list.append(element("p", {}, xl.say(!xl.given.keep ? "not_saved" : entries.length ? "no_match" : "no_chats")));
    },
  };
  // Open where there is room, also after the window was made wider or narrower.
  const fit = () => root.classList.toggle("x-side", xl.wide() && localStorage.getItem(SIDE) !== "closed");
  matchMedia("(min-width: 900px)").addEventListener("change", fit);
  fit();

  xl.draw.side = (container) => {
    const plain = (name, run, attributes = {}) => element("button", { type: "button", class: "x-plain", onclick: run, ...attributes }, xl.say(name));
    const label = matchMedia("(pointer: coarse)").matches ? xl.say("search").replace(/ ?[（(].*/, "") : xl.say("search");  // no keys there
    search = element("input", { type: "search", id: "search", placeholder: label, "aria-label": label, oninput: () => xl.side.list() });
    list = element("div", { id: "saved" });
    const theme = element("select", { id: "theme", "aria-label": xl.say("theme"), onchange: (event) => xl.setTheme(event.target.value) },
      ...["auto", "light", "dark"].map((name) => element("option", { value: name, selected: name === xl.theme() }, xl.say(`theme_${name}`))));
    const other = xl.language === "zh" ? "en" : "zh";
    container.replaceChildren(
      element("div", { class: "x-side-top" },
        element("button", { type: "button", id: "new", class: "x-strong", "data-changes": true, onclick: () => xl.chat.open(null) }, xl.icon("plus"), xl.say("new_chat")),
        xl.iconButton("sidebar", xl.say("close_sidebar"), () => {
          xl.side.toggle(false);
          document.querySelector("#side-button").focus();
        })),
      search, list,
      element("div", { class: "x-side-end" },
        element("div", { class: "x-side-all" }, element("p", {}, xl.say(!xl.given.keep ? "not_saved" : xl.given.feedback ? "saved_rated" : "saved")), menuButton(xl.say("all_chats"), [
          ["import", () => xl.files.pick()], ["export_all", xl.files.exportAll], ["export_training", xl.files.exportTraining],
          ["delete_all", removeAll, "x-danger"],
        ], { id: "all-chats" })),
        theme,
        element("button", { type: "button", class: "x-plain", id: "language", lang: other, onclick: () => xl.chooseLanguage(other) }, xl.say("other_language")),
        xl.given.login ? plain("log_out", () => fetch("logout", { method: "POST" }).then(() => location.reload()), { id: "log-out" }) : null));
    container.className = "x-side-body";
    const block = container.closest("#side");
    block.setAttribute("role", "navigation");
    block.setAttribute("aria-label", xl.say("chats"));
    xl.side.list();
  };
  xl.draw.top = (container) => {
    heading = element("h1", { id: "heading" }, xl.say("name"));
    container.className = "x-top";
    container.replaceChildren(
      xl.iconButton("bars", xl.say("open_sidebar"), () => xl.side.toggle(), { id: "side-button" }),
      xl.face(), heading,
      xl.iconButton("plus", xl.say("new_chat"), () => xl.chat.open(null), { id: "new-button", "data-changes": true }),
      ...(xl.given.studio ? [xl.iconButton("train", xl.say("studio"), () => xl.studio.toggle(true), { id: "studio-button" })] : []),
      xl.iconButton("settings", xl.say("settings"), () => xl.side.panel(), { id: "settings-button" }));
  };
  xl.draw.personas = (container, props, trigger) => {
    xl.choosePersona = (name) => trigger("select", { index: 0, value: name });
    container.className = "x-personas";
    container.replaceChildren(element("h3", {}, xl.say("personas")), element("p", {}, xl.say("persona_note")), ...Object.keys(xl.given.personas).map((name) => {
      const [title, line] = xl.say(`persona_${name}`).split("\n");
      const choose = () => xl.choosePersona(xl.persona() === name ? "" : name);
      return element("button", { type: "button", class: "x-persona", "data-name": name, "data-changes": true, "aria-pressed": "false", onclick: choose },
        xl.face(name), element("span", {}, element("b", {}, title), element("small", {}, line)));
    }));
    xl.side.personas();
  };
  xl.draw.settings = (container) => {
    container.className = "x-panel-top";
    container.replaceChildren(element("h2", {}, xl.say("settings")), xl.iconButton("close", xl.say("close"), () => xl.side.panel(false)));
  };
  xl.draw.keys = (container) => container.replaceChildren(element("p", { class: "x-keys" }, xl.say("keys")));
  document.addEventListener("click", (event) => { if (list && !event.target.closest(".x-more")) closeMenus(); });
  xl.side.closeMenus = () => { const isOpen = Boolean(document.querySelector(".x-menu")); if (isOpen) closeMenus(); return isOpen; };
})();
