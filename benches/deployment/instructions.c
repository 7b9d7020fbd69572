/* Counts the instructions of one image on the boards mps2-an386 and mps2-an500 of QEMU with -icount shift=0: there an instruction takes
 * a nanosecond, and a timer of theirs counts every 40. */

#include "steadfast.h"

#include <stdio.h>

static uint8_t frame[STEADFAST_FRAME_BYTES];
static float memory[(STEADFAST_ARENA_BYTES + sizeof(float) - 1) / sizeof(float)];

/* Control, value, reload of CMSDK's timer 0. */
#define TIMER ((volatile uint32_t *)0x40000000)

int main(void)
{
    steadfast_verdict verdict;
    TIMER[2] = TIMER[1] = 0xffffffff;
    TIMER[0] = 1;
    uint32_t before = TIMER[1];
    steadfast_classify(frame, sizeof frame, memory, sizeof memory, &verdict);
    printf("%lu\n", (unsigned long)(before - TIMER[1]) * 40);
    return 0;
}
