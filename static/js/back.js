/** The way back of a small screen: while the card covers the page, Back closes it and stays on the page. */

/**
 * The history has one entry more while the card covers the page, however many cards follow one another; its state says
 * so, and is believed after a reload.
 * @param {Pick<Window, 'history' | 'addEventListener'>} page
 * @param {() => boolean} covered whether the card covers the page
 * @param {() => void} close
 * @returns {() => void} to be called when that may have changed
 */
export function wayBack(page, covered, close) {
  const { history } = page;
  /** A step back is asked for and has not come yet: until then the history is not to be touched. */
  let leaving = false;
  const marked = () => history.state?.card === true;
  const settle = () => {
    if (leaving || covered() === marked()) return;
    if (covered()) {
      history.pushState({ card: true }, '');
    } else {
      leaving = true;
      history.back();
    }
  };
  page.addEventListener('popstate', () => {
    if (!leaving && covered() && !marked()) close();
    leaving = false;
    settle();
  });
  settle();
  return settle;
}
