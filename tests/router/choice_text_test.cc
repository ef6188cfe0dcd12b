#include "router/choice_text.h"

#include <gmock/gmock.h>

#include <random>

#include "tests/golden/golden_support.h"

namespace moiety {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// --- StopMatcher

struct Matched {
  std::string text;
  std::optional<std::string> stop;
  bool operator==(const Matched&) const = default;
};

/// The whole text at once, byte by byte.
Matched plain_match(const std::string& text, const std::vector<std::string>& stops, bool include) {
  for (std::size_t end = 1; end <= text.size(); ++end) {
    const std::string* longest = nullptr;
    for (const std::string& stop : stops) {
      if (!text.substr(0, end).ends_with(stop)) continue;
      if (longest == nullptr || stop.size() > longest->size()) longest = &stop;
    }
    if (longest != nullptr)
      return {text.substr(0, include ? end : end - longest->size()), *longest};
  }
  return {text, std::nullopt};
}

TEST(StopMatcher, AgreesWithThePlainSearchHoweverTheTextIsCut) {
  std::mt19937 random(4);
  const auto draw = [&](int from, int to) {
    return std::uniform_int_distribution<int>(from, to)(random);
  };
  const auto word = [&](int from, int to) {
    std::string text(static_cast<std::size_t>(draw(from, to)), 'a');
    for (char& c : text) c = static_cast<char>('a' + draw(0, 1));
    return text;
  };
  int stopped = 0, streamed = 0;
  for (int round = 0; round < 20000; ++round) {
    std::vector<std::string> stops(static_cast<std::size_t>(draw(0, 3)));
    for (std::string& stop : stops) stop = word(1, 6);
    const std::string text = word(0, 24);
    const bool include = draw(0, 1) == 1;
    StopMatcher matcher(stops, include);
    Matched got;
    for (std::size_t at = 0; at < text.size() && !matcher.matched();) {
      const std::size_t size = static_cast<std::size_t>(draw(1, 5));
      got.text += matcher.push(text.substr(at, size));
      at += size;
    }
    streamed += got.text.empty() ? 0 : 1;
    got.text += matcher.finish();
    got.stop = matcher.matched();
    EXPECT_EQ(got, plain_match(text, stops, include)) << text;
    stopped += got.stop ? 1 : 0;
  }
  EXPECT_GT(stopped, 3000);
  EXPECT_GT(streamed, 3000);
}

TEST(StopMatcher, HoldsBackNoMoreThanItMust) {
  StopMatcher matcher({"\n\nUser:", "END"}, false);
  EXPECT_EQ(matcher.push("Hello\n"), "Hello");
  EXPECT_EQ(matcher.push("\nUs"), "");
  EXPECT_EQ(matcher.push("eless. E"), "\n\nUseless. ");
  EXPECT_EQ(matcher.push("N"), "");
  EXPECT_EQ(matcher.push("DED"), "");
  EXPECT_EQ(matcher.matched(), "END");
  EXPECT_EQ(matcher.push("more"), "");
  EXPECT_EQ(matcher.finish(), "");
}

TEST(StopMatcher, PassLooksForNothing) {
  StopMatcher matcher({"ab"}, false);
  EXPECT_EQ(matcher.pass("xab"), "xab");
  EXPECT_EQ(matcher.push("a"), "");
  EXPECT_EQ(matcher.pass("b"), "ab");
  EXPECT_EQ(matcher.push("b"), "b") << "what was passed is no part of a stop string";
}

// --- ChoiceText, with the bundled tokenizer

class ChoiceTextTest : public ::testing::Test {
 protected:
  static const Tokenizer& tokenizer() {
    static const Tokenizer loaded =
        std::move(Tokenizer::load(testing::source_path("models/moiety-tiny-emo"))).value();
    return loaded;
  }
  static SampledToken token(std::int32_t id) { return {.token = id}; }

  struct Outcome {
    std::string text;
    std::vector<std::int32_t> tokens;
    std::vector<std::size_t> offsets;
    StopReason stop_reason;
    std::size_t taken = 0;
  };
  static Outcome run(const std::vector<std::int32_t>& ids, ChoiceTextOptions options) {
    options.keep_tokens = true;
    ChoiceText text(tokenizer(), std::move(options));
    Outcome outcome;
    const auto take = [&] {
      TextPiece piece = text.take();
      outcome.text += piece.text;
      for (const AnswerToken& t : piece.tokens) {
        outcome.tokens.push_back(t.sampled.token);
        outcome.offsets.push_back(t.text_offset);
      }
    };
    for (std::int32_t id : ids) {
      ++outcome.taken;
      const bool ends = text.push(token(id));
      take();
      if (ends) break;
    }
    text.finish();
    take();
    outcome.stop_reason = text.stop_reason();
    return outcome;
  }
};

TEST_F(ChoiceTextTest, TextAndTokensOfAWholeAnswer) {
  const std::string text = "def read(path):\n    return 東京 é";
  const std::vector<std::int32_t> ids = *tokenizer().encode(text);
  const Outcome outcome = run(ids, {});
  EXPECT_EQ(outcome.text, text);
  EXPECT_EQ(outcome.tokens, ids);
  EXPECT_EQ(outcome.offsets.front(), 0u);
  EXPECT_TRUE(std::is_sorted(outcome.offsets.begin(), outcome.offsets.end()));
  EXPECT_LT(outcome.offsets.back(), text.size()) << "in characters";
  EXPECT_TRUE(std::holds_alternative<std::monostate>(outcome.stop_reason));
}

TEST_F(ChoiceTextTest, AStopStringAcrossTokensIsNeverGivenOut) {
  const std::string text = "one two three four five";
  const std::vector<std::int32_t> ids = *tokenizer().encode(text);
  const Outcome whole = run(ids, {});
  const Outcome outcome = run(ids, {.stop = {"o three f"}});
  EXPECT_EQ(outcome.text, "one tw");
  EXPECT_EQ(std::get<std::string>(outcome.stop_reason), "o three f");
  EXPECT_LT(outcome.taken, ids.size());
  // The tokens whose text begins before the end.
  std::size_t expected = 0;
  while (whole.offsets[expected] < outcome.text.size()) ++expected;
  EXPECT_EQ(outcome.tokens, std::vector<std::int32_t>(
                                ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(expected)));
  EXPECT_EQ(run(ids, {.stop = {"o three f"}, .include_stop = true}).text, "one two three f");
}

TEST_F(ChoiceTextTest, WhatOnlyLookedLikeAStopStringComesOut) {
  const std::vector<std::int32_t> ids = *tokenizer().encode("one two thr");
  const Outcome outcome = run(ids, {.stop = {"two three"}});
  EXPECT_EQ(outcome.text, "one two thr");
  EXPECT_EQ(outcome.tokens, ids);
}

TEST_F(ChoiceTextTest, AStopTokenEndsTheTextBeforeItself) {
  const std::vector<std::int32_t> ids = *tokenizer().encode("one two three");
  ASSERT_GE(ids.size(), 3u);
  const Outcome outcome = run(ids, {.stop_token_ids = {ids[2]}});
  EXPECT_EQ(outcome.text, tokenizer().decode({ids[0], ids[1]}));
  EXPECT_THAT(outcome.tokens, ElementsAre(ids[0], ids[1]));
  EXPECT_EQ(std::get<std::int32_t>(outcome.stop_reason), ids[2]);
}

TEST_F(ChoiceTextTest, MinTokensComeBeforeAnyStopString) {
  std::vector<std::int32_t> ids;
  for (int i = 0; i < 6; ++i) ids.push_back(tokenizer().encode(" the")->at(0));
  EXPECT_EQ(run(ids, {.stop = {" the"}}).taken, 1u);
  const Outcome later = run(ids, {.stop = {" the"}, .min_tokens = 3});
  EXPECT_EQ(later.taken, 4u);
  EXPECT_EQ(later.text, " the the the");
}

TEST_F(ChoiceTextTest, HalfACharacterWaits) {
  const std::vector<std::int32_t> ids = *tokenizer().encode("🦑");
  ASSERT_GT(ids.size(), 1u) << "not a test of what it says";
  ChoiceText text(tokenizer(), {.keep_tokens = true});
  text.push(token(ids[0]));
  TextPiece piece = text.take();
  EXPECT_EQ(piece.text, "");
  EXPECT_THAT(piece.tokens, IsEmpty());
  text.finish();
  piece = text.take();
  EXPECT_EQ(piece.text, "\xef\xbf\xbd");
  EXPECT_EQ(piece.tokens.size(), 1u);
}

TEST_F(ChoiceTextTest, ATokenBehindAnUnfinishedCharacterBeginsBehindIt) {
  const std::int32_t part = tokenizer().encode("🦑")->at(0);
  const std::int32_t word = tokenizer().encode("one")->at(0);
  EXPECT_THAT(run({part, word}, {}).offsets, ElementsAre(0, 1));
  const Outcome parts = run({part, part, word}, {});
  EXPECT_EQ(parts.text,
            "\xef\xbf\xbd\xef\xbf\xbd"
            "one");
  EXPECT_THAT(parts.offsets, ElementsAre(0, 1, 2));
  const Outcome stopped = run({part, word}, {.stop = {"one"}});
  EXPECT_EQ(stopped.text, "\xef\xbf\xbd");
  EXPECT_THAT(stopped.tokens, ElementsAre(part)) << "the other lies behind the end";
}

TEST_F(ChoiceTextTest, SpecialTokensAreLeftOutUnlessWanted) {
  const std::vector<std::int32_t> ids = *tokenizer().encode("a<|endoftext|>b");
  EXPECT_EQ(run(ids, {}).text, "ab");
  EXPECT_EQ(run(ids, {}).tokens, ids);
  EXPECT_EQ(run(ids, {.skip_special = false}).text, "a<|endoftext|>b");
}

}  // namespace
}  // namespace moiety
