#include "router/load_report.h"

#include <gmock/gmock.h>

namespace moiety {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using Counts = LoadReport::Counts;

TEST(LoadReport, SaysWhatIsNewAtTheInterval) {
  LoadReport report;
  const Clock::time_point begin{};
  EXPECT_TRUE(report.due(begin));
  EXPECT_THAT(report.since_last({{0, 0}, {}, {0}}), IsEmpty()) << "nothing was counted";
  const Counts first = {{3, 0}, {}, {1}};
  EXPECT_EQ(report.since_last(first), first);
  EXPECT_EQ(report.since_last(first), first) << "it could not be sent";
  report.sent(first, begin);
  EXPECT_FALSE(report.due(begin + LoadReport::kInterval / 2));
  EXPECT_TRUE(report.due(begin + LoadReport::kInterval));
  EXPECT_THAT(report.since_last(first), IsEmpty());
  const Counts second = {{3, 5}, {}, {2}};
  EXPECT_THAT(report.since_last(second), ElementsAre(ElementsAre(0, 5), IsEmpty(), ElementsAre(1)));
  report.sent(second, begin + LoadReport::kInterval);
  EXPECT_FALSE(report.due(begin + LoadReport::kInterval));
}

}  // namespace
}  // namespace moiety
