"""Where the training texts lie: IFT, EFT and what the model made itself (paper Fig. 6).

Texts become vectors by TF-IDF and a truncated SVD, drawn with t-SNE: no download, no model, nothing
but the tables. Where a model has made vectors (`srkit.texts`), they take that place. How new the
self-made prompts are is measured against the seed, against earlier iterations and against the test
prompts; what they are about by k-means over all prompts.

Surprising decisions: TF-IDF knows words, not meaning, so two ways to say one thing lie apart; the
paper's vectors (from which model is not known) may know more. A map shows what lies near what;
distances between groups and their sizes mean nothing. In the map EFT stands as it is trained on,
as judge prompts and judgements, as in the paper, so that the responses to one prompt make a clump;
everywhere else its plain prompts are meant. t-SNE is sensitive to the last bit: the same tables
give the same bytes on one machine (one thread, a fixed seed), not on every one. The generator's
filter drops prompts whose ROUGE-L with IFT or earlier prompts exceeds 0.7, so no near-duplicates of
those are found; what it does not see are EFT and the test prompts. scikit-learn is imported where
it is used: it takes a second or two, and a figure needs only the names of the columns.

    python -c "from srkit.distribution import nearest; print(nearest(['A cat'], ['a cat']))"
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from scipy.spatial.distance import jensenshannon
from threadpoolctl import threadpool_limits

from srkit import stats
from srkit.instruct import max_rouge, rouge_tokens

Texts = Sequence[str]
COMPONENTS, PERPLEXITY = 50, 30
MAPPED = 400  # texts of one set in a map: more would cover each other, and t-SNE is slow
TOPICS, TERMS = 8, 3
NEAR = 0.7  # ROUGE-L F1 above which Self-Instruct calls a prompt a near-duplicate
SHUFFLES = 500
MAP = ("set", "x", "y", "texts", "vectors")
NOVELTY = ("name", "against", "quantity", "value", "low", "high", "n", "references")
COUNTS = ("topic", "terms", "name", "count", "share", "n")
DRIFT = ("name", "against", "distance", "by_chance", "by_chance_high", "n", "references")


class Vectors(NamedTuple):
    """Texts as points by a model: its name, and a vector for every text that will be asked for."""

    model: str
    of: Mapping[str, np.ndarray]

    def rows(self, texts: Texts) -> np.ndarray:
        """Unit vectors, (texts, components)."""
        from sklearn.preprocessing import normalize

        found = np.array([self.of[text] for text in texts])
        return normalize(found) if len(found) else np.zeros((0, len(next(iter(self.of.values())))))


def tfidf(texts: Texts) -> tuple[csr_matrix, np.ndarray]:
    """Unit TF-IDF vectors of texts, (texts, terms), and the terms; English stop words are left out.

    A text without any term is a row of zeros.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, stop_words="english")
    tokens = vectorizer.build_analyzer()
    if not any(tokens(text) for text in texts):
        return csr_matrix((len(texts), 1)), np.array([""])
    return vectorizer.fit_transform(texts), vectorizer.get_feature_names_out()


def embedding(texts: Texts, known: Vectors | None = None, seed: int = 0) -> np.ndarray:
    """Unit vectors, (texts, components): those known, or of TF-IDF's truncated SVD (`COMPONENTS`
    at most)."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.preprocessing import normalize

    if known:
        return known.rows(texts)
    vectors, _ = tfidf(texts)
    components = min(COMPONENTS, *vectors.shape)
    with threadpool_limits(1):  # the sums of several threads differ in the last bit
        return normalize(TruncatedSVD(components, random_state=seed).fit_transform(vectors))


def text_map(
    sets: Mapping[str, Texts], seed: int = 0, known: Vectors | None = None
) -> pd.DataFrame:
    """Places of texts in the plane by t-SNE, a row per text: set, x, y, texts (of its set in all),
    vectors (whose).

    Of each set at most `MAPPED` texts are drawn, the same in every run. Fewer than five texts have
    no map: their places are zero.
    """
    from sklearn.manifold import TSNE

    sampled = {name: _sample(texts, seed) for name, texts in sets.items()}
    drawn = [(name, text) for name, texts in sampled.items() for text in texts]
    table = pd.DataFrame(drawn, columns=["set", "text"])
    texts = list(dict.fromkeys(table["text"]))  # each once: arms that copy prompts add no weight
    place = np.zeros((len(table), 2))
    if len(texts) >= 5:
        vectors = embedding(texts, known, seed)
        perplexity = min(PERPLEXITY, (len(texts) - 1) / 3)
        start = "pca" if vectors.shape[1] > 1 else "random"
        with threadpool_limits(1):
            fit = TSNE(perplexity=perplexity, init=start, random_state=seed)
            place = fit.fit_transform(vectors)[table["text"].map(texts.index)]
    x, y = np.round(place.astype(float), 3).T
    counts = {name: len(texts) for name, texts in sets.items()}
    whose = known.model if known else "TF-IDF, SVD"
    return table.assign(x=x, y=y, texts=table["set"].map(counts), vectors=whose)[list(MAP)]


def nearest(
    texts: Texts, others: Texts | None = None, known: Vectors | None = None
) -> pd.DataFrame:
    """How near each text comes to any of `others`: columns rouge and cosine, in [0, 1].

    Without `others` the rest of the texts themselves. ROUGE-L F1; the cosine of TF-IDF vectors, or
    of those known (0 where it is negative).
    """
    alone = others is None
    others = texts if alone else others
    if known:
        similar = known.rows(texts) @ known.rows(others).T  # (texts, others)
    else:
        vectors, _ = tfidf([*texts, *others])
        similar = (vectors[: len(texts)] @ vectors[len(texts) :].T).toarray()
    if alone:
        np.fill_diagonal(similar, 0)
    known = [rouge_tokens(text) for text in others]
    own = known if alone else [rouge_tokens(text) for text in texts]
    rest = (known[:i] + known[i + 1 :] if alone else known for i in range(len(texts)))
    rouge = [max_rouge(tokens, against) for tokens, against in zip(own, rest, strict=True)]
    cosine = similar.max(axis=1, initial=0).round(9)
    return pd.DataFrame({"rouge": rouge, "cosine": cosine}, dtype=float)


def novelty(
    questions: Sequence[tuple[str, Texts, str, Texts | None]],
    resamples: int = stats.RESAMPLES,
    seed: int = 0,
    known: Vectors | None = None,
) -> pd.DataFrame:
    """How new texts are: the nearest of the others by ROUGE-L and by cosine.

    `questions` are (name, texts, against, others); others None: the rest of the texts, which tells
    how near prompts of one source are to each other anyway; of these at most `MAPPED` are taken.
    A row per question and quantity: nearest by ROUGE-L, nearest by cosine (means), near-duplicates
    (share with ROUGE-L above `NEAR`). Columns: name, against, quantity, value, low, high (95 %, by
    prompt), n (texts), references (others).
    """
    rows, options = [], {"resamples": resamples, "seed": seed}
    for name, texts, against, others in questions:
        texts = _sample(texts, seed) if others is None else texts
        table = nearest(texts, others, known).assign(one=1, prompt_id=range(len(texts)))
        table["near"] = table["rouge"] > NEAR
        found = {
            "nearest by ROUGE-L": stats.bootstrap(table, ("rouge", "one"), **options),
            "nearest by cosine": stats.bootstrap(table, ("cosine", "one"), **options),
            "near-duplicates": stats.rate(table, "near", "one", **options),
        }
        references = len(texts) - 1 if others is None else len(others)
        labels = {"name": name, "against": against, "references": references}
        rows += [{**labels, "quantity": quantity, **row} for quantity, row in found.items()]
    numbers = dict.fromkeys(("value", "low", "high"), float)
    return pd.DataFrame(rows, columns=list(NOVELTY)).astype(numbers)


def assign_topics(
    sets: Mapping[str, Texts], seed: int = 0, known: Vectors | None = None
) -> pd.DataFrame:
    """The topic of every text by k-means over all of them: name, topic (0, 1, ...), terms.

    Topics are numbered from the largest; `terms` are the three that weigh most in it.
    """
    from sklearn.cluster import KMeans

    rows = [(name, text) for name, texts in sets.items() for text in texts]
    table = pd.DataFrame(rows, columns=["name", "text"])
    if table.empty:
        return pd.DataFrame(columns=["name", "topic", "terms"])
    texts = list(dict.fromkeys(table["text"]))  # each once: arms that copy prompts add no weight
    vectors, terms = tfidf(texts)
    places = embedding(texts, known, seed)
    clusters = min(TOPICS, len(np.unique(places.round(6), axis=0)))
    with threadpool_limits(1):
        found = KMeans(clusters, n_init=10, random_state=seed).fit_predict(places)
    order = np.argsort(-np.bincount(found), kind="stable")
    names = {old: _heaviest(vectors[found == old], terms) for old in order}
    ranks = {old: new for new, old in enumerate(order)}
    topics = table["text"].map(dict(zip(texts, found, strict=True)))
    return table[["name"]].assign(topic=topics.map(ranks), terms=topics.map(names))


def topic_counts(topics: pd.DataFrame) -> pd.DataFrame:
    """Texts of each set in each topic: topic, terms, name, count, share (of the set), n (the set).

    `topics` is `assign_topics`; a set without texts in a topic has a row of zero.
    """
    if topics.empty:
        return pd.DataFrame(columns=list(COUNTS))
    names = list(dict.fromkeys(topics["name"]))
    terms = topics.drop_duplicates("topic").set_index("topic")["terms"]
    counts = pd.crosstab(topics["topic"], topics["name"])[names]
    table = counts.stack().rename("count").reset_index()
    sizes = table["name"].map(topics["name"].value_counts())
    table = table.assign(terms=table["topic"].map(terms), n=sizes, share=table["count"] / sizes)
    return table[list(COUNTS)]


def topic_drift(
    topics: pd.DataFrame, questions: Sequence[tuple[str, str]], seed: int = 0
) -> pd.DataFrame:
    """How far apart two sets are in their topics: Jensen-Shannon distance, in [0, 1].

    `topics` is `assign_topics`, `questions` are (name, against). Two samples of one source are not
    at zero either: by_chance and by_chance_high are mean and 95 % quantile of the distance when the
    two sets are shuffled. Columns: name, against, distance, by_chance, by_chance_high, n,
    references (texts of the two).
    """
    rows = []
    for name, against in questions:
        two = [topics.loc[topics["name"] == one, "topic"].to_numpy(int) for one in (name, against)]
        row = {"name": name, "against": against, "n": len(two[0]), "references": len(two[1])}
        if all(map(len, two)):
            rng, both = np.random.default_rng(seed), np.concatenate(two)
            shuffled = [rng.permutation(both) for _ in range(SHUFFLES)]
            chance = [_distance(s[: len(two[0])], s[len(two[0]) :]) for s in shuffled]
            high = np.percentile(chance, 95)
            row |= {"by_chance": np.mean(chance), "by_chance_high": high}
            row["distance"] = _distance(*two)
        rows.append(row)
    numbers = dict.fromkeys(("distance", "by_chance", "by_chance_high"), float)
    return pd.DataFrame(rows, columns=list(DRIFT)).astype(numbers)


def _sample(texts: Texts, seed: int) -> list[str]:
    """At most `MAPPED` of the texts, in their order."""
    if len(texts) <= MAPPED:
        return list(texts)
    chosen = sorted(random.Random(seed).sample(range(len(texts)), MAPPED))
    return [texts[i] for i in chosen]


def _heaviest(vectors: csr_matrix, terms: np.ndarray) -> str:
    weights = np.asarray(vectors.sum(axis=0)).ravel().round(9)
    best = np.lexsort((terms, -weights))[:TERMS]  # of equal weight: by the alphabet
    return ", ".join(terms[i] for i in best if weights[i] > 0) or "no words"


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    counts = [np.bincount(topics, minlength=TOPICS) for topics in (one, other)]
    return float(np.nan_to_num(jensenshannon(*counts, base=2)))
