// Tables sort by the column whose head is clicked: numbers by size, everything else by the alphabet; again: the other way round.
document.addEventListener('click', event => {
  const head = event.target.closest('.md-typeset th')
  if (!head) return
  const table = head.closest('table'), column = [...head.parentNode.children].indexOf(head)
  const rising = head.dataset.rising !== 'yes'
  head.dataset.rising = rising ? 'yes' : 'no'
  const value = row => row.children[column]?.textContent.trim() ?? ''
  const number = text => parseFloat(text.replace(/,/g, ''))
  const compare = (a, b) => isNaN(number(a)) || isNaN(number(b)) ? a.localeCompare(b) : number(a) - number(b)
  const rows = [...table.tBodies[0].rows].sort((a, b) => compare(value(a), value(b)) * (rising ? 1 : -1))
  table.tBodies[0].append(...rows)
})
