"use strict";
// The page: chats in the browser, one worker that decodes. Text is only ever set as textContent.
const WORDS = {
  zh: { title: "闲聊", sub: "一个在你浏览器里运行的中文聊天机器人，不联网。", fresh: "新对话", remove: "删除对话", retry: "重答",
        undo: "撤回", send: "发送", stop: "停止", settings: "设置", hint: "说点什么……", seed: "随机种子（空：每次不同）",
        temperature: "温度", top_p: "top-p", candidates: "候选数", loading: "正在载入……", empty: "空对话",
        failed: "无法启动：", note: "它是程序，会说错话。对话只存在这个浏览器里。" },
  en: { title: "Xianliao", sub: "A Chinese chatbot that runs in your browser, offline.", fresh: "New chat", remove: "Delete chat",
        retry: "Retry", undo: "Undo", send: "Send", stop: "Stop", settings: "Settings", hint: "Say something, in Chinese…",
        seed: "Seed (empty: random)", temperature: "Temperature", top_p: "top-p", candidates: "Candidates",
        loading: "Loading…", empty: "Empty chat", failed: "Cannot start: ",
        note: "It is a program and makes mistakes. Chats stay in this browser." },
};
const T = WORDS[navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en"];
const NAMES = ["greedy", "candidates", "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty",
  "no_repeat_ngram", "repeat_cost", "keep_eos", "floor_start_tokens", "floor_delta_tokens", "max_reply_tokens",
  "min_reply_tokens"]; // in the order of runtime.h
const STORE = "xianliao-chats", MAX_SEED = 2147483646;
const find = (id) => document.getElementById(id);
const blob = (id, type) => URL.createObjectURL(new Blob([find(id).textContent], { type }));

function decode(id) { // base64 of a data block
  const text = find(id).textContent;
  find(id).remove();
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

const isText = (value) => typeof value === "string";
function stored() {
  try {
    const chats = JSON.parse(localStorage.getItem(STORE));
    if (Array.isArray(chats)) return chats.filter((turns) => Array.isArray(turns) && turns.length % 2 === 0 && turns.every(isText));
  } catch { /* damaged or forbidden: begin anew */ }
  return [];
}
function store() {
  try { localStorage.setItem(STORE, JSON.stringify(chats.filter((turns) => turns.length))); } catch { /* full or forbidden */ }
}

let chats = stored(), open = 0, busy = null, defaults = null, next = 0;
const pending = new Map();
if (!chats.length) chats.unshift([]);

const worker = new Worker(blob("worker", "text/javascript"));
let started;
const ready = new Promise((resolve, reject) => { started = { resolve, reject }; });
worker.onerror = (event) => started.reject(new Error(event.message || "worker"));
worker.onmessage = ({ data }) => {
  if (data.ready) { defaults = data.defaults; started.resolve(); return; }
  if (data.failed) { started.reject(new Error(data.failed)); return; }
  const request = pending.get(data.id);
  if (!request) return;
  if (data.fault !== undefined) { pending.delete(data.id); request.reject(new Error(data.fault)); return; }
  request.show(data);
  if (data.done) { pending.delete(data.id); request.resolve(data); }
};

// Reply to a history, for this page and for scripts: resolves to {text, tokens, reason, seed}.
async function reply(turns, seed, changes = {}, show = () => {}) {
  const id = busy = next++;
  try {
    await ready;
    const settings = [...defaults];
    if (changes.greedy) changes = { candidates: 1, ...changes }; // as in Python: the checkpoint's candidates are sampled
    for (const [name, value] of Object.entries(changes)) {
      if (!NAMES.includes(name)) throw new Error(`There is no setting ${name}.`);
      settings[NAMES.indexOf(name)] = value;
    }
    const made = new Promise((resolve, reject) => pending.set(id, { resolve, reject, show }));
    worker.postMessage({ id, turns, seed, settings });
    return { ...(await made), seed };
  } finally { if (busy === id) busy = null; }
}
window.xianliao = { reply, ready };

function bubble(text, who) {
  const element = document.createElement("div");
  element.className = `message ${who}`;
  element.textContent = text;
  find("chat").append(element);
  return element;
}
function draw() {
  find("chat").replaceChildren();
  chats[open].forEach((text, i) => bubble(text, i % 2 ? "bot" : "user"));
  find("chats").replaceChildren(...chats.map((turns, i) => {
    const option = document.createElement("option");
    option.value = i;
    option.textContent = turns[0] ? turns[0].slice(0, 30) : T.empty;
    return option;
  }));
  find("chats").value = open;
  idle();
}
function idle() {
  const working = busy !== null, turns = chats[open];
  find("send").textContent = working ? T.stop : T.send;
  for (const id of ["retry", "undo"]) find(id).disabled = working || !turns.length;
  for (const id of ["fresh", "remove", "chats"]) find(id).disabled = working;
  find("chat").scrollTop = find("chat").scrollHeight;
}
function number(id, least, most) {
  const value = find(id).value === "" ? NaN : Number(find(id).value);
  return value >= least && value <= most ? value : NaN;
}
function changes() {
  const made = {}, limits = { temperature: [0.01, 100], top_p: [0.01, 1], candidates: [1, 16] };
  for (const [name, range] of Object.entries(limits)) {
    const value = number(name, ...range);
    if (!Number.isNaN(value)) made[name] = name === "candidates" ? Math.round(value) : value;
  }
  return made;
}
async function say(message) {
  const turns = chats[open], typed = number("seed", 0, MAX_SEED);
  const seed = Number.isInteger(typed) ? typed : crypto.getRandomValues(new Uint32Array(1))[0] % MAX_SEED;
  bubble(message, "user");
  const shown = bubble("…", "bot"), began = performance.now();
  find("status").textContent = "";
  try {
    const made = reply([...turns, message], seed, changes(), ({ text }) => { shown.textContent = text || "…"; idle(); });
    idle();
    const { text, reason, tokens } = await made, seconds = (performance.now() - began) / 1000;
    turns.push(message, text);
    store();
    draw();
    find("status").textContent = reason === "safety" ? "" : `${reason} · seed ${seed} · ${tokens.length + 1} tokens · ${((tokens.length + 1) / seconds).toFixed(0)}/s`;
  } catch (error) {
    draw();
    find("message").value = message;
    find("status").textContent = error.message;
  }
  idle();
}
function submit() {
  if (busy !== null) { worker.postMessage({ stop: busy }); return; }
  const message = find("message").value.trim();
  if (!message || !defaults) return;
  find("message").value = "";
  say(message);
}
find("send").onclick = submit;
find("message").onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return; // an IME's Enter
  event.preventDefault();
  if (busy === null) submit();
};
find("retry").onclick = () => { const [message] = chats[open].splice(-2); draw(); say(message); };
find("undo").onclick = () => { const [message] = chats[open].splice(-2); store(); draw(); find("message").value = message; };
find("fresh").onclick = () => { if (chats[open].length || !chats[0].length) { if (chats[0].length) chats.unshift([]); open = 0; } draw(); };
find("remove").onclick = () => { chats.splice(open, 1); if (!chats.length) chats.unshift([]); open = 0; store(); draw(); };
find("chats").onchange = (event) => { open = Number(event.target.value); draw(); };

document.documentElement.lang = T === WORDS.zh ? "zh-CN" : "en";
document.title = T.title;
for (const element of document.querySelectorAll("[data-word]")) element.textContent = T[element.dataset.word];
find("message").placeholder = T.hint;
find("message").setAttribute("aria-label", T.hint);
find("chats").setAttribute("aria-label", T.title);
find("status").textContent = T.loading;
draw();
setTimeout(() => { // the page is drawn before the weights are decoded
  const weights = decode("weights"), wasm = decode("wasm");
  worker.postMessage({ wasm: wasm.buffer, weights: weights.buffer }, [wasm.buffer, weights.buffer]);
  ready.then(() => { find("status").textContent = ""; for (const name of ["temperature", "top_p", "candidates"]) find(name).placeholder = defaults[NAMES.indexOf(name)]; },
             (error) => { find("status").textContent = T.failed + error.message; });
});
