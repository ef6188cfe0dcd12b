#include "bench/http_load.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace moiety::bench {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

TEST(EventReader, FindsEventsWhereverPiecesEnd) {
  const std::string stream =
      "data: {\"a\": 1}\n\n: a comment\n\ndata:two\r\ndata: lines\r\n\r\nevent: x\ndata: 3\n\nda";
  EventReader whole;
  EXPECT_THAT(whole.push(stream), ElementsAre("{\"a\": 1}", "two\nlines", "3"));
  EXPECT_THAT(whole.push("ta: [DONE]\n\n"), ElementsAre("[DONE]"));
  EventReader bytewise;
  std::vector<std::string> events;
  for (const char byte : stream) {
    for (std::string& event : bytewise.push({&byte, 1})) events.push_back(std::move(event));
  }
  EXPECT_THAT(events, ElementsAre("{\"a\": 1}", "two\nlines", "3"));
  EXPECT_THAT(EventReader().push("data: unfinished\n"), IsEmpty());
}

TEST(Percentile, IsTheValueThatTheShareDoesNotExceed) {
  const std::vector<double> values = {5, 1, 4, 2, 3, 6, 7, 8, 9, 10};
  EXPECT_EQ(percentile(values, 0.5), 5);
  EXPECT_EQ(percentile(values, 0.9), 9);
  EXPECT_EQ(percentile(values, 0.99), 10);
  EXPECT_EQ(percentile({7}, 0.5), 7);
  EXPECT_EQ(percentile({}, 0.5), 0);
}

TEST(HttpLoad, AServerThatIsNotThereIsAnErrorWithItsAddress) {
  HttpLoadOptions options;
  options.url = "http://127.0.0.1:1";
  options.model = "x";
  options.streams = 2;
  options.vocab_size = 10;
  const std::atomic<bool> stop{false};
  const auto result = run_http_load(options, stop);
  ASSERT_FALSE(result);
  EXPECT_NE(result.error().message.find("127.0.0.1:1"), std::string::npos);
}

}  // namespace
}  // namespace moiety::bench
