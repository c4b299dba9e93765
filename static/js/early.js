// Before the first paint, so that a light page never flashes dark or the other way about.
(() => {
  let chosen = 'auto';
  try {
    const { theme, language } = JSON.parse(localStorage.getItem('studio.prefs') ?? '{}') ?? {};
    if (theme === 'dark' || theme === 'light') chosen = theme;
    if (language === 'en' || language === 'ru') document.documentElement.lang = language;
  } catch {
    // A preference that cannot be read is no preference.
  }
  if (chosen === 'auto') chosen = matchMedia('(prefers-color-scheme: light)').matches ? 'light' : 'dark';
  document.documentElement.dataset.theme = chosen;
})();
