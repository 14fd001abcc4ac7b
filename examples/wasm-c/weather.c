/* Seattle's weather by month, from a CSV on stdin. An ordinary C program: compiled to WASI it runs
   anywhere, and sees nothing of the machine but its stdin, stdout and stderr. */
#include <stdio.h>
#include <stdlib.h>

struct month {
  int days, wet;
  double rain, warmest, coldest;
};

int main(void) {
  static const char *names[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
  struct month months[12] = {0};
  char line[256];
  int rows = 0, skipped = 0;

  while (fgets(line, sizeof line, stdin)) {
    int year, number, day;
    double rain, high, low;
    if (sscanf(line, "%d/%d/%d,%lf,%lf,%lf", &year, &number, &day, &rain, &high, &low) != 6 ||
        number < 1 || number > 12) {
      skipped++;
      continue;
    }
    struct month *m = &months[number - 1];
    if (!m->days || high > m->warmest) m->warmest = high;
    if (!m->days || low < m->coldest) m->coldest = low;
    m->days++;
    m->wet += rain > 0;
    m->rain += rain;
    rows++;
  }
  fprintf(stderr, "%d days read, %d lines skipped\n", rows, skipped);
  if (!rows) return EXIT_FAILURE;

  printf("month  wet days  mm/day  warmest  coldest\n");
  for (int i = 0; i < 12; i++) {
    struct month *m = &months[i];
    if (m->days)
      printf("%s    %7.0f%%  %6.1f  %7.1f  %7.1f\n", names[i], 100.0 * m->wet / m->days,
             m->rain / m->days, m->warmest, m->coldest);
  }
  return EXIT_SUCCESS;
}
