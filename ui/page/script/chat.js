// The conversation: messages, welcome, editing. Only elements whose content changed are drawn anew.
(() => {
  const xl = window.xianliao, { element } = xl;
  const NEW = { id: "", title: "", persona: [], system: "", messages: [] };
  const INVISIBLE = /[\u202a-\u202e\u2066-\u2069\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f]/g;
  let list, props, keys = [], asked = null, listed = "";
  // asked: the conversation for which more replies are being made; listed: the message whose versions are listed in full
  const visible = xl.visible = (text) => text.replace(INVISIBLE, "\ufffd");
  const current = () => (props && props.value) || NEW;
  // Returns the name of the ready-made persona of the conversation, or "".
  xl.persona = () => {
    const turns = JSON.stringify(current().persona || []);
    return Object.keys(xl.given.personas).find((name) => JSON.stringify(xl.given.personas[name]) === turns) || "";
  };
  // Returns the name of the chosen bot; "" for the bundled one. A result of the training view has the name of its folder.
  let chosenBot = Object.keys(xl.given.bots)[0];
  const botName = () => (Object.hasOwn(xl.given.bots, chosenBot) ? xl.given.bots[chosenBot] : chosenBot);
  const scroller = () => list.closest("#chat");
  const isAtEnd = () => scroller().scrollHeight - scroller().scrollTop - scroller().clientHeight < 80;
  const toEnd = () => { scroller().scrollTop = scroller().scrollHeight; };

  // Lines break between the parts of a sentence first.
  const phrases = (text) => text.split(/(?<=，)/).map((part) => element("span", {}, part));

  const welcome = () => element("div", { class: "x-welcome" },
    xl.face(),
    element("h2", {}, ...phrases(xl.persona() ? xl.say("persona_welcome", { name: xl.side.personaName(xl.persona()) }) : botName() ? xl.say("welcome_named", { name: botName() }) : xl.say("welcome"))),
    xl.persona() ? element("button", { type: "button", class: "x-plain", id: "no-persona", "data-changes": true, onclick: () => xl.choosePersona("") }, xl.say("no_persona")) : null,
    element("p", {}, xl.say("welcome_note")),
    element("div", { class: "x-examples" }, ...xl.given.examples.map((text, at) => element(
      "button", { type: "button", class: "x-example", onclick: () => xl.trigger("example_select", { index: at, value: { text } }) },
      element("b", {}, xl.say(`welcome_${at + 1}`)), element("span", { lang: "zh-CN" }, text),
    ))));

  const dots = () => element("div", { class: "x-turn bot x-typing" }, xl.face(),
    element("div", { class: "x-dots", role: "img", "aria-label": xl.say("typing") }, ...[1, 2, 3].map(() => element("i"))));

  const versions = (index) => {
    const [at, count] = xl.tree.versionOf(index);
    if (count < 2) return null;
    const show = (step) => () => xl.chat.choose(index, step);
    return element("span", { class: "x-versions" },
      xl.iconButton("previous", xl.say("previous"), show(-1), { disabled: at === 1, "data-changes": true }),
      element("span", {}, `${at}/${count}`),
      xl.iconButton("next", xl.say("next"), show(1), { disabled: at === count, "data-changes": true }));
  };

  // The versions of the last reply in full, after several were asked for: a choice shows one of them.
  const nameOf = (index) => `${current().id} ${index}`;
  const options = (index, isLast) => {
    const [at, count] = xl.tree.versionOf(index);
    if (!isLast || listed !== nameOf(index) || count < 2) return null;
    const choose = (step) => () => {
      xl.chat.choose(index, step);
      list.querySelector(".x-option[aria-pressed=true]")?.focus();
    };
    return element("div", { class: "x-options", role: "group", "aria-label": xl.say("options") }, element("p", {}, xl.say("options")),
      ...xl.tree.texts(index).map((text, number) => element("button", {
        type: "button", class: "x-option", lang: "zh-CN", dir: "auto", "aria-pressed": String(number + 1 === at), "data-changes": true, onclick: choose(number + 1 - at),
      }, visible(text))));
  };

  // Only a fixed reply to a person in crisis has these texts and no seed.
  xl.isFixed = (message) => Boolean(message) && message.role === "assistant" && message.seed === undefined && xl.given.fixed.includes(message.text);
  const withCalls = (text) => text.split(/(?<!\d)(12356|110|120)(?!\d)/).map((part, at) => (at % 2 ? element("a", { href: `tel:${part}` }, part) : part));

  const turn = (message, index, isLast) => {
    if (message.role === "divider") return element("div", { class: "x-divider", role: "separator" }, xl.say("divider"));
    const side = message.role === "user" ? "user" : "bot";
    const isFixed = xl.isFixed(message), text = visible(message.text);
    const content = element("div", { class: `${side} message`, lang: "zh-CN", dir: "auto" }, ...(isFixed ? withCalls(text) : [text]));
    const thoughts = message.thoughts ? element("details", { class: "x-thoughts", lang: "zh-CN", dir: "auto" },
      element("summary", {}, xl.say("thoughts")), visible(message.thoughts)) : null;
    const actions = xl.actions.filter((action) => action.shows(message, index, isLast)), rare = actions.filter((action) => action.isRare);
    const buttons = actions.map((action) => xl.iconButton(action.icon, xl.say(action.name), () => action.run(message, index), {
      class: action.isRare ? "x-button x-rest" : "x-button", "data-changes": action.changes, ...(action.state ? action.state(message, index) : {}),
    }));
    // On a narrow screen the rare actions are in a menu, in words.
    const more = xl.menuButton(xl.say("more_actions"), rare.map(({ name, run, changes }) => [name, () => run(message, index), "", changes]));
    more.classList.add("x-fold");
    return element("div", { class: `x-turn ${side}${isLast ? " last" : ""}`, "data-index": index, onclick: tapped },
      side === "bot" ? xl.face() : null,
      element("div", { class: "x-body" }, thoughts, content, isFixed ? element("p", { class: "x-fixed" }, xl.say("fixed")) : null,
        element("div", { class: "x-actions" }, ...buttons, more, versions(index)), options(index, isLast), xl.ball.part(isLast)));
  };
  // On a touch screen a tap on a message shows its actions.
  const tapped = (event) => {
    if (event.target.closest("button, textarea")) return;
    list.querySelectorAll(".x-turn.open").forEach((other) => other !== event.currentTarget && other.classList.remove("open"));
    event.currentTarget.classList.toggle("open");
  };

  const keyOf = (message, index, isLast) => {
    const node = xl.tree.node(index) || {}, isLastOfUser = message.role === "user" && !current().messages.slice(index + 1).some(({ role }) => role === "user");
    return JSON.stringify([xl.persona(), message.role, message.text, message.thoughts, message.seed, isLast, isLastOfUser, xl.tree.versionOf(index), node.rating, isLast && [Boolean(asked), listed === nameOf(index), xl.ball.isOpen()]]);
  };
  const draw = () => {
    if (!list) return;
    const { messages, title } = current(), wasAtEnd = isAtEnd() || !keys.length;
    if (!messages.length) {
      const key = `welcome ${xl.persona()} ${botName()}`;
      if (keys.length !== 1 || keys[0] !== key) list.replaceChildren(welcome());
      keys = [key];
    } else {
      const wanted = messages.map((message, index) => keyOf(message, index, index === messages.length - 1));
      if (messages[messages.length - 1].role === "user") wanted.push("dots");
      if (String(keys[0]).startsWith("welcome")) { list.replaceChildren(); keys = []; }
      wanted.forEach((key, index) => {
        if (keys[index] === key) return;
        const drawn = key === "dots" ? dots() : turn(messages[index], index, index === messages.length - 1);
        if (list.children[index]) list.children[index].replaceWith(drawn);
        else list.append(drawn);
      });
      while (list.children.length > wanted.length) list.lastChild.remove();
      keys = wanted;
    }
    list.setAttribute("aria-busy", String(Boolean(document.querySelector("#message .stop-button"))));  // a reply grows
    if (wasAtEnd) toEnd();
    if (xl.side) { xl.side.name(title); xl.side.personas(); }
  };

  xl.draw.chat = (root, properties, trigger, watch) => {
    props = properties;
    xl.trigger = (name, data) => setTimeout(() => trigger(name, data), 0);
    list = root;
    list.className = "x-chat";
    Object.entries({ role: "log", "aria-live": "polite", "aria-label": xl.say("chats") }).forEach(([name, value]) => list.setAttribute(name, value));
    const down = xl.iconButton("down", xl.say("to_end"), toEnd, { id: "x-to-end", hidden: true });
    scroller().after(down);
    scroller().setAttribute("tabindex", "0");
    scroller().setAttribute("role", "region");
    scroller().setAttribute("aria-label", xl.say("chats"));
    scroller().addEventListener("scroll", () => { down.hidden = isAtEnd(); });
    watch("value", draw);
    draw();
  };
  const set = (chat) => { props.value = chat; draw(); };
  const forget = () => { delete document.documentElement.dataset.rating; delete document.documentElement.dataset.notice; };

  xl.chat = {
    current, set, redraw: draw, botName,
    named: (name) => { chosenBot = name || chosenBot; draw(); },
    isOffering: () => Boolean(asked),
    // Other versions of the last reply are being made, until they were made or an error has ended this.
    offering: (isBusy) => {
      const { id, messages } = current();
      asked = isBusy ? { id, count: messages.length } : null;
      document.documentElement.classList.toggle("x-offering", isBusy);
      draw();
    },
    // Opens a stored conversation, or a new one.
    open: (id) => {
      const chat = id ? xl.store.load(id) : null;
      if (!chat) { xl.tree.begin(); sessionStorage.removeItem("xianliao.open"); }
      keys = [];
      list.replaceChildren();
      forget();
      set(chat || NEW);
      toEnd();
      xl.trigger("load", {});
      xl.side.list();
      if (!xl.wide()) xl.side.toggle(false);
      document.querySelector("#message textarea").focus();
    },
    // Shows other messages and stores them.
    put: (messages) => { forget(); set(xl.saved({ ...current(), messages })); },
    choose: (index, step) => {
      const messages = xl.tree.chosen(index, step);
      if (messages) xl.chat.put(messages);
    },
    branch: (index) => {
      const { title, persona, system, messages } = current(), isUser = messages[index].role === "user";
      const chat = { id: xl.newId(), title: xl.say("branched", { title }).slice(0, 100), persona, system, messages: messages.slice(0, index + !isUser) };
      xl.tree.begin();
      set(chat.messages.length ? xl.saved(chat) : { ...NEW, persona, system });
      if (isUser) xl.compose(messages[index].text);
    },
    edit: (index) => {
      const { text } = current().messages[index], row = list.children[index];
      if (row.querySelector("textarea")) return;
      const box = element("textarea", { class: "edit-textarea", "aria-label": xl.say("edit"), rows: Math.min(8, text.split("\n").length + 1) });
      const close = () => { keys[index] = ""; draw(); document.querySelector("#message textarea").focus(); };
      const send = () => {
        if (!box.value.trim()) return;
        close();
        xl.trigger("edit", { index, value: box.value, previous_value: text });
      };
      box.value = text;
      box.addEventListener("keydown", (event) => {
        if (event.key === "Escape") { event.stopPropagation(); close(); }
        if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229) { event.preventDefault(); send(); }
      });
      row.querySelector(".x-body").replaceChildren(element("div", { class: "x-edit" }, box,
        element("p", {}, xl.say("edit_note")),
        element("div", {},
          element("button", { type: "button", class: "x-plain", onclick: close }, xl.say("cancel")),
          element("button", { type: "button", class: "x-strong", onclick: send, "data-changes": true }, xl.say("send")))));
      box.focus();
      box.setSelectionRange(text.length, text.length);
    },
  };
  // The server's events call these with the conversation.
  xl.saved = (chat) => {
    forget();
    const stored = xl.store.save(chat);
    if (xl.side) xl.side.list();
    setTimeout(draw, 0);
    return stored;
  };
  // A reply has ended: the line about it belongs to it, or says why there is none.
  xl.replied = (chat, line) => {
    const stored = xl.saved(chat), last = chat.messages.length - 1, node = xl.tree.node(last);
    if (last >= 0 && chat.messages[last].seed !== undefined) {
      node.line = line;
      xl.store.save(stored);
    } else if (!xl.isFixed(chat.messages[last])) document.documentElement.dataset.notice = "";
    return stored;
  };
  // Replies were made: they become versions of the last reply, and the first of them is shown, unless the conversation has
  // gone on meanwhile.
  xl.offered = (chat, replies) => {
    const isSame = asked && asked.id === chat.id && asked.count === chat.messages.length;
    xl.chat.offering(false);
    if (!isSame || !Array.isArray(replies) || !replies.length) return null;
    const last = chat.messages.length - 1, index = chat.messages[last].role === "user" ? last + 1 : last;
    const same = chat.messages[index] && chat.messages[index].role === "assistant";
    if (!same && chat.messages[index]) return null;
    xl.tree.add(chat, index, replies);
    if (replies.length > 1) listed = nameOf(index);
    xl.chat.put([...chat.messages.slice(0, index), replies[0]]);
    return null;
  };
  xl.rated = ({ index, rating }) => {
    const node = xl.tree.node(index);
    if (node) node.rating = rating;
    xl.store.save(current());
    document.documentElement.dataset.rating = "";
    draw();
  };
})();
