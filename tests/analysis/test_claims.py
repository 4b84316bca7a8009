import pytest
from scipy import stats

from t2eval.analysis.claims import Claim, higher, judge, sentence
from t2eval.bench.compare import Paired


def scores(right, n=40):
    return {str(i): float(i in right) for i in range(n)}


def test_a_claim_is_tested_on_the_same_examples():
    better, worse = scores(range(30)), scores(range(10))
    claim = higher("a scores higher than b", better, worse)
    assert claim.difference == pytest.approx(0.5)
    assert claim.n == 40
    assert claim.p == pytest.approx(stats.binomtest(20, 20, 0.5).pvalue)
    (judged,) = judge([claim])
    assert judged.verdict == "supported"
    assert judge([higher("b scores higher than a", worse, better)])[0].verdict == "contradicted"
    assert judge([higher("a beats a", better, better)])[0].verdict == "not supported"


def test_claims_of_one_item_are_corrected_together():
    ps = [0.01, 0.02, 0.04]
    judged = judge([Claim(text=str(p), difference=0.1, p=p, n=9, test="t") for p in ps])
    assert [claim.adjusted for claim in judged] == pytest.approx([0.03, 0.04, 0.04])
    alone = judge(
        [Claim(text="x", difference=0.1, p=0.04, n=9, test="t"), *[Claim(text=str(i), difference=0.1, p=0.5, n=9) for i in range(3)]]
    )
    assert alone[0].verdict == "not supported"


def test_what_cannot_be_compared_is_not_supported():
    claim = higher("a scores higher than b", {"x": 1.0}, {"y": 1.0})
    assert claim.verdict == "not supported"
    assert "share no examples" in sentence(judge([claim]))


def test_the_sentence_reads_the_numbers():
    good, bad = scores(range(30)), scores(range(10))
    claims = judge([higher("A beats B", good, bad), higher("B beats A", bad, good), higher("A beats A", good, good)])
    text = sentence([*claims, Claim(text="fewer parameters", holds=False, seen="3 of 2")])
    assert text.startswith("Of 4 claims: 1 supported, 2 contradicted, 1 not supported (McNemar exact; two-sided, Holm's correction over 3 ")
    assert "\n- Supported:\n  - A beats B (+0.500 [" in text
    assert "- Contradicted, the opposite is the case:\n  - B beats A (-0.500" in text
    assert "fewer parameters (3 of 2)" in text.split("Contradicted")[1].split("Not supported")[0]
    assert "- Not supported, the data do not tell the two apart:\n  - A beats A (+0.000" in text
    measured = sentence([Claim(text="less than half", holds=True, seen="18%")])
    assert measured.startswith("Of 1 claim: 1 supported, 0 contradicted, 0 not supported (measured, without a test).")
    assert sentence([]) == "Nothing is claimed here that a test could support."


def test_a_graded_comparison_says_its_test():
    from t2eval.analysis.claims import tested

    claim = tested("x", Paired(0.2, 0.1, 0.3, 12, 0.001, "paired bootstrap"))
    assert "(paired bootstrap; two-sided, one comparison, p < 0.05)." in sentence(judge([claim]))
