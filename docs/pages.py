"""The pages of the documentation that are written from the cards: the zoo, and one page a checkpoint."""
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from igczoo.checkpoints.card import cards
from igczoo.checkpoints.model_card import comparison, model_card, models_table
from igczoo.nets.families import VARIANTS

ZOO = '''# The zoo

Click on a column's head to sort by it. What was *measured* here has an interval (95 %, Wilson) and the number of images; what is
*published* says who prints it.

'''


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.nav.append({'Checkpoints': [f'checkpoints/{name}.md' for name in sorted(cards())]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    found = cards()
    table = re.sub(r'\]\(weights/([^)]+)/README\.md\)', r'](checkpoints/\1.md)', models_table(found, VARIANTS))
    comparisons = [f'\n{text}' for name in sorted(found) if (text := comparison(found[name]))]
    files.append(File.generated(config, 'zoo.md', content=ZOO + table + ''.join(comparisons)))
    for name, card in found.items():
        text = model_card(card).partition('\n---\n')[2]     # less the hub's metadata
        files.append(File.generated(config, f'checkpoints/{name}.md', content=text))
    return files
