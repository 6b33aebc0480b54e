// Chooses the language before the page is drawn: the one that the reader chose before, or else that of the browser.
const KEY = "xianliao.report.language";
const remembered = () => {
  try { return localStorage.getItem(KEY); } catch { return null; }  // a browser may refuse storage to a file
};
const show = (language) => {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const name of ["title", "aria-label"]) {
    for (const element of document.querySelectorAll(`[data-zh-${name}]`)) {
      if (!element.hasAttribute(`data-en-${name}`)) element.setAttribute(`data-en-${name}`, element.getAttribute(name));
      element.setAttribute(name, element.getAttribute(`data-${language}-${name}`));
    }
  }
  const title = document.querySelector("title");
  title.dataset.en ??= title.textContent;
  title.textContent = title.dataset[language];
};
let language = ["zh", "en"].includes(remembered()) ? remembered() : navigator.language.startsWith("zh") ? "zh" : "en";
show(language);
addEventListener("DOMContentLoaded", () => {
  show(language);
  document.querySelector("#language").addEventListener("click", () => {
    language = language === "zh" ? "en" : "zh";
    show(language);
    try { localStorage.setItem(KEY, language); } catch { /* it is chosen for this visit alone */ }
  });
});
