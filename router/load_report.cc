#include "router/load_report.h"

#include <utility>

namespace moiety {

LoadReport::Counts LoadReport::since_last(const Counts& totals) const {
  Counts news = totals;
  bool any = false;
  for (std::size_t layer = 0; layer < news.size(); ++layer) {
    for (std::size_t expert = 0; expert < news[layer].size(); ++expert) {
      if (!last_.empty()) news[layer][expert] -= last_[layer][expert];
      any |= news[layer][expert] != 0;
    }
  }
  if (!any) return {};
  return news;
}

void LoadReport::sent(Counts totals, Clock::time_point now) {
  sent_ = true;
  sent_at_ = now;
  last_ = std::move(totals);
}

}  // namespace moiety
